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
from policy.checkpoint import load, load_trainer

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


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "policy.train", *arguments],
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


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(f"store.path={store}", f"out={out}", *SETTINGS))
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
@pytest.mark.parametrize("extra_lines", [0, 2])
def test_kill_9_and_resume_equals_an_uninterrupted_run(store, uninterrupted, tmp_path, extra_lines):
    out = tmp_path / "run"
    process = start(f"store.path={store}", f"out={out}", *SETTINGS)
    metrics = out / "metrics.jsonl"

    def is_between_checkpoints() -> bool:
        saved = sorted((out / "checkpoints").glob("step_*"))
        if not saved or not metrics.exists():
            return False
        step = int(saved[-1].name.removeprefix("step_"))
        return metrics.read_text().count("loss") >= step // 4 + extra_lines

    wait_for(is_between_checkpoints, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load(out).step < 60, "the run was over before it was killed"
    output = finish(start(f"resume={out}"))
    assert "resuming" in output
    assert_same_run(uninterrupted, out)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(store, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start(f"store.path={store}", f"out={out}", *SETTINGS)
    metrics = out / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), process)
    process.send_signal(signal.SIGINT)
    output = finish(process, status=130)
    assert f"resume={out}" in output
    assert load(out).step < 60
    finish(start(f"resume={out}"))
    assert_same_run(uninterrupted, out)


def test_resume_takes_no_other_settings(uninterrupted):
    process = start(f"resume={uninterrupted}", "batch_size=3")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "batch_size=3" in output
