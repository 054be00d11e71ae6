"""Where a loop's time goes, by a clock that the test turns."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.store import EpisodeStore
from data.types import Contract, Field
from policy import train
from policy.entry import compose_config
from policy.stopwatch import NoStopwatch, Stopwatch, table


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_parts_and_the_rest_are_all_of_the_time(clock):
    watch = Stopwatch(torch.device("cpu"))
    clock[0] += 7.0  # is forgotten
    watch.restart()
    for _ in range(2):
        with watch.part("forward"):
            clock[0] += 3.0
        clock[0] += 0.5
        with watch.part("backward"):
            clock[0] += 5.0
    assert watch.seconds() == {"forward": 6.0, "backward": 10.0, "rest": 1.0}


def test_a_table_gives_milliseconds_a_step_and_the_share_that_is_no_work():
    shown = table(
        {"forward": 3.0, "optimiser": 1.0, "data": 0.5, "rest": 0.5},
        n_steps=100,
        work=("forward", "optimiser"),
    )
    lines = [line.split() for line in shown.splitlines()]
    assert ["forward", "30.000", "60.0%"] in lines
    assert ["all", "50.000", "100%"] in lines
    assert lines[-1] == ["outside", "of", "forward,", "optimiser:", "20.0%"]


def test_no_stopwatch_counts_nothing(clock):
    watch = NoStopwatch()
    watch.restart()
    with watch.part("forward"):
        clock[0] += 1.0
    assert watch._parts == {}


def train_with(tmp_path: Path, *settings: str) -> None:
    contract = Contract(
        observation={"state": Field(shape=(2,))}, action=Field(shape=(2,)), control_dt=0.1
    )
    store, rng = EpisodeStore.create(tmp_path / "store.zarr", contract), np.random.default_rng(0)
    for _ in range(3):
        walk = rng.normal(size=(20, 4)).astype(np.float32)
        store.append({"state": walk[:, :2], "action": walk[:, 2:]})
    small = ["batch_size=8", "precision=fp32", "device=cpu", "threads=1", "net.channels=[8,16]"]
    told = [f"store.path={store.path}", f"out={tmp_path / 'run'}", "log_every=2"]
    train.run(compose_config("train", [*told, *small, *settings]))


def test_a_run_too_short_for_a_profile_says_so(tmp_path, capsys):
    train_with(tmp_path, "steps=3", "profile=true")
    assert "no profile: it leaves out the first 3 steps" in capsys.readouterr().out


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_run_prints_where_its_time_went_if_it_is_asked_to(tmp_path, capsys, is_wanted):
    train_with(tmp_path, "steps=6", f"profile={is_wanted}")
    shown = capsys.readouterr().out
    assert ("part of a step" in shown) == is_wanted
    if is_wanted:
        names = {line.split()[0] for line in shown.splitlines() if line.strip()}
        assert {"data", "noise", "forward", "backward", "optimiser", "average", "log"} <= names
        assert {"rest", "outside"} <= names
    assert (
        Path(tmp_path / "run" / "metrics.jsonl").read_text().count("loss") == 4
    )  # 3, and one of validation
