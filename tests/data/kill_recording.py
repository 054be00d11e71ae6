"""Kills a recorder with SIGKILL at random moments and checks the store after each.

    python tests/data/kill_recording.py FOLDER --kills 20

A forked child records episodes whose numbers follow from their seed, another one checks them. This
process itself never touches zarr, whose threads would not survive the fork.
"""

import argparse
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from data.record import record
from data.store import EpisodeStore
from data.types import Contract, Field

CONTRACT = Contract(
    observation={"state": Field((3,)), "camera": Field((32, 32, 3), dtype="uint8")},
    action=Field((2,)),
    control_dt=0.1,
)


class SeededEnv(gym.Env):
    """Everything follows from the seed: length, observations, and actions by `expert`."""

    observation_space = spaces.Dict(
        {
            "state": spaces.Box(-np.inf, np.inf, (3,), np.float32),
            "camera": spaces.Box(0, 255, (32, 32, 3), np.uint8),
        }
    )
    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        assert seed is not None
        self.number, self.step_index = seed, 0
        return observation(seed, 0), {}

    def step(self, action):
        self.step_index += 1
        is_over = self.step_index == length(self.number)
        return (
            observation(self.number, self.step_index),
            0.0,
            is_over,
            False,
            {"is_success": is_over},
        )


def length(seed: int) -> int:
    return 5 + 7 * seed % 40


def observation(seed: int, step: int) -> dict:
    state = np.array([seed, step, seed + step], np.float32)
    return {"state": state, "camera": np.full((32, 32, 3), (seed + step) % 256, np.uint8)}


def expert(rng: np.random.Generator) -> Callable:
    return lambda fields: fields["state"][:2] * 2


def record_until_killed(path: Path, n_seeds: int = 1_000_000) -> None:
    store = EpisodeStore.open(path, mode="a") if path.exists() else None
    store = store or EpisodeStore.create(path, CONTRACT)
    record(SeededEnv(), {"expert": expert}, store, seeds=range(n_seeds))


def check(path: Path) -> None:
    """Every visible episode is whole and is the one of its seed, none is missing between."""
    if not path.exists():
        return
    store = EpisodeStore.open(path)
    fields = {name: store.read(name) for name in CONTRACT.fields}
    assert [entry["seed"] for entry in store.episode_metadata] == list(range(store.n_episodes))
    start = 0
    for seed, end in enumerate(store.episode_ends.tolist()):
        assert end - start == length(seed)
        for step in range(length(seed)):
            expected = observation(seed, step)
            for name, value in expected.items():
                np.testing.assert_array_equal(fields[name][start + step], value)
            np.testing.assert_array_equal(fields["action"][start + step], expected["state"][:2] * 2)
        start = end
    (path.parent / "n_episodes").write_text(str(store.n_episodes))


def run_forked(task: Callable[[Path], None], path: Path, *, kill_after: float | None) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            task(path)
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if kill_after is None and status != 0:
        raise SystemExit(f"{task} failed")
    if kill_after is not None and not os.WIFSIGNALED(status):
        raise SystemExit(f"{task} ended before it was killed")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.8, help="until a kill, at most")
    arguments = parser.parse_args()
    path, moments = arguments.folder / "store.zarr", random.Random(0)
    counts = [0]
    for _ in range(arguments.kills):
        run_forked(record_until_killed, path, kill_after=moments.uniform(0.01, arguments.seconds))
        run_forked(check, path, kill_after=None)
        if path.exists():
            counts.append(int((arguments.folder / "n_episodes").read_text()))
        assert counts == sorted(counts), f"finished episodes were lost: {counts}"
    n_more = counts[-1] + 5
    run_forked(lambda path: record_until_killed(path, n_more), path, kill_after=None)
    run_forked(check, path, kill_after=None)
    assert int((arguments.folder / "n_episodes").read_text()) == n_more
    print(f"{arguments.kills} kills, episodes after each: {counts[1:]}")


if __name__ == "__main__":
    main()
