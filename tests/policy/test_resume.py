"""A killed and resumed training run equals an uninterrupted one, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.store import EpisodeStore
from data.types import Contract, Field
from policy import train
from policy.checkpoint import load, load_trainer
from policy.entry import compose_config

WAITING = Path(__file__).with_name("waiting_training.py")

SETTINGS = (
    "steps=60",
    "save_every=10",
    "log_every=4",
    "validate_every=15",
    "precision=fp32",
    "batch_size=32",
    "net.channels=[8,16]",
    "warmup_steps=5",
    "holdout=0.25",
    "device=cpu",
    "threads=1",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "walk.zarr"
    contract = Contract(
        observation={"state": Field(shape=(3,))}, action=Field(shape=(2,)), control_dt=0.1
    )
    rng = np.random.default_rng(0)
    made = EpisodeStore.create(path, contract)
    for _ in range(8):
        walk = rng.normal(size=(30, 5)).cumsum(axis=0).astype(np.float32)
        made.append({"state": walk[:, :3], "action": walk[:, 3:]})
    return path


def start_waiting(point: str, step: int, *arguments: str) -> subprocess.Popen:
    """A training in a process of its own, which waits at a point for a signal."""
    return subprocess.Popen(
        [sys.executable, str(WAITING), point, str(step), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, *, status: int = 0) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    return output


def wait_for(done, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 100
    while not done():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def train_here(*settings: str) -> None:
    train.run(compose_config("train", settings))


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train_here(f"store.path={store}", f"out={out}", *SETTINGS)
    return out


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    a, b = load(one), load(other)
    assert a.step == b.step == 60
    assert_same(a.policy_state, b.policy_state)
    assert_same(load_trainer(a), load_trainer(b))


def assert_same(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)  # pyright: ignore[reportArgumentType]
    elif isinstance(a, dict):
        assert a.keys() == b.keys()  # pyright: ignore[reportAttributeAccessIssue]
        for key in a:
            assert_same(a[key], b[key])  # pyright: ignore[reportIndexIssue]
    elif isinstance(a, list | tuple):
        for left, right in zip(a, b, strict=True):  # pyright: ignore[reportArgumentType]
            assert_same(left, right)
    else:
        assert a == b


# Right after a checkpoint, and between two (metrics lines of steps that are lost again).
@pytest.mark.parametrize(("point", "step"), [("checkpoint", 20), ("line", 16)])
def test_kill_9_and_resume_equals_an_uninterrupted_run(
    store, uninterrupted, tmp_path, capsys, point, step
):
    out = tmp_path / "run"
    process = start_waiting(point, step, f"store.path={store}", f"out={out}", *SETTINGS)
    metrics, saved = out / "metrics.jsonl", step // 10 * 10
    last = out / "checkpoints" / "last"

    def is_there() -> bool:
        is_saved = last.resolve().name == f"step_{saved:08d}"
        return is_saved and metrics.read_text().count('"loss"') >= step // 4

    wait_for(is_there, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert load(out).step == saved
    train_here(f"resume={out}")
    assert f"resuming {out} at step {saved}" in capsys.readouterr().out
    assert_same_run(uninterrupted, out)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(store, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start_waiting("line", 4, f"store.path={store}", f"out={out}", *SETTINGS)
    metrics = out / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), process)
    process.send_signal(signal.SIGINT)
    output = finish(process, status=130)
    assert f"resume={out}" in output
    assert load(out).step == 4
    train_here(f"resume={out}")
    assert_same_run(uninterrupted, out)


def test_resume_takes_no_other_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", f"resume={tmp_path}", "batch_size=3"])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 2
    assert "batch_size=3" in capsys.readouterr().err
