"""What a run keeps of what it saw, planned and sent."""

import numpy as np
import pytest

from data.store import EpisodeStore, StoreError
from data.types import Contract, Field, Horizons, Observation
from policy import run, trace
from policy.entry import compose_config
from policy.trace import Trace, TracedPlanner
from policy.types import ActionChunk, PlannerError, Request
from policy.view_run import read_chunks

CONTRACT = Contract({"state": Field((2,))}, Field((1,)), 0.1)


class FakeRobot:
    contract, limits, is_real = CONTRACT, (np.full(1, -1.0), np.full(1, 1.0)), True

    def __init__(self):
        self.shared = np.zeros(2, np.float32)  # Reused by every reading, as drivers do.
        self.commands: list[tuple[float, int]] = []
        self.stops = 0

    def read(self) -> Observation:
        self.shared += 1
        return Observation({"state": self.shared}, 0.0)

    def pose(self) -> np.ndarray:
        return np.full(1, 0.25)

    def command(self, action: np.ndarray, tick: int) -> None:
        self.commands.append((float(action[0]), tick))

    def stop(self) -> None:
        self.stops += 1


class FakePlanner:
    contract, horizons = CONTRACT, Horizons(1, 3, 2)

    def __call__(self, request: Request) -> ActionChunk:
        if request.tick < 0:
            raise PlannerError("none")
        actions = request.tick + np.arange(3.0)[:, None]
        return ActionChunk(actions, request.tick, CONTRACT)


def played(ticks_of_episodes: list[list[int]], kept: Trace) -> FakeRobot:
    """A loop that asks every other tick and sends what was planned."""
    robot, planner = FakeRobot(), TracedPlanner(FakePlanner(), kept)
    for epoch, ticks in enumerate(ticks_of_episodes):
        for tick in ticks:
            observed = robot.read()
            if tick % 2 == 0:
                planner(Request(observed.fields, tick, epoch=epoch))
            robot.command(np.array([float(tick)]), tick)
            kept.add_sent(observed, np.array([float(tick)]), tick)
    return robot


def test_what_was_seen_planned_and_sent_is_read_back(tmp_path):
    kept = Trace(CONTRACT)
    robot = played([[0, 1, 2, 3], [0, 1]], kept)
    kept.write(tmp_path, [{"seed": 5}])
    store = EpisodeStore.open(tmp_path / "trace.zarr")
    assert store.lengths_of([0, 1]).tolist() == [4, 2]
    assert store.episode_metadata == [{"seed": 5}, {}]
    assert store.read("action")[:, 0].tolist() == [0, 1, 2, 3, 0, 1]
    assert robot.commands == [(0, 0), (1, 1), (2, 2), (3, 3), (0, 0), (1, 1)]
    # Not what the driver's array holds at the end.
    assert store.read("state")[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    chunks = read_chunks(tmp_path, 1, 2)
    assert (chunks[0].ticks, chunks[1].ticks) == ([0, 2], [0])
    assert chunks[0].actions[1][:, 0].tolist() == [2, 3, 4]


def test_missed_ticks_have_no_steps_and_are_told(tmp_path):
    kept = Trace(CONTRACT)
    played([[0, 1, 4, 5]], kept)
    kept.write(tmp_path, [])
    store = EpisodeStore.open(tmp_path / "trace.zarr")
    assert store.episode_metadata == [{"ticks": [0, 1, 4, 5]}]
    assert read_chunks(tmp_path, 1, 1)[0].ticks == [0, 2]


def test_nothing_sent_writes_nothing(tmp_path):
    kept = Trace(CONTRACT)
    kept.write(tmp_path, [])
    TracedPlanner(FakePlanner(), kept)(Request({}, 0))
    kept.write(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_an_episode_without_a_command_is_left_out_with_its_metadata(tmp_path):
    kept = Trace(CONTRACT)
    played([[], [0, 1]], kept)
    kept.write(tmp_path, [{"seed": 0}, {"seed": 1}])
    assert EpisodeStore.open(tmp_path / "trace.zarr").episode_metadata == [{"seed": 1}]


def test_the_planner_is_what_it_was_and_nothing_is_kept_before_it_is_asked():
    kept = Trace(CONTRACT)
    planner = TracedPlanner(FakePlanner(), kept)
    kept.add_sent(FakeRobot().read(), np.zeros(1), 0)
    assert kept.episodes == []
    assert planner.horizons == Horizons(1, 3, 2)
    with pytest.raises(PlannerError):
        planner(Request({}, -1))


def test_a_trace_does_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(trace, "MOST_STEPS", 3)
    kept = Trace(CONTRACT)
    robot = played([[0, 1, 2, 3, 4]], kept)
    assert len(robot.commands) == 5
    assert (kept.episodes[0].ticks, kept.is_full) == ([0, 1, 2], True)
    assert len(kept.episodes[0].chunks) == 2  # The third was planned after the trace was full.


def test_a_folder_with_a_trace_is_refused(tmp_path):
    kept = Trace(CONTRACT)
    played([[0]], kept)
    kept.write(tmp_path, [])
    with pytest.raises(StoreError, match="exists already"):
        kept.write(tmp_path, [])


def test_cadence_run_traces_if_it_is_told_to(pillar_checkpoint, tmp_path):
    for is_traced in (True, False):
        out = tmp_path / str(is_traced)
        settings = [f"checkpoint={pillar_checkpoint}", "env=pillar", "episodes=1", "seconds=1"]
        run.run(compose_config("run", [*settings, f"trace={is_traced}", f"out={out}"]))
        assert (out / "trace.zarr").exists() == is_traced
    store = EpisodeStore.open(tmp_path / "True" / "trace.zarr")
    assert store.episode_metadata[0]["seed"] == 200000
    chunks = read_chunks(tmp_path / "True", 4, 1)[0]
    # What was sent first is what the first chunk planned first, within the limits.
    meaning = store.contract.action
    first = np.clip(chunks.actions[0][0], meaning.low, meaning.high)
    assert store.read("action")[0] == pytest.approx(first, abs=1e-6)
