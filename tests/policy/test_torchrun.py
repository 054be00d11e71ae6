"""Training by `torchrun`: as one process, written by one, resumed by any number, interrupted."""

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
from policy.checkpoint import load
from policy.entry import compose_config
from policy.interruption import Interruption
from policy.metrics import read_metrics

WAITING = Path(__file__).with_name("waiting_training.py")
SETTINGS = (
    *("steps=30", "save_every=10", "log_every=5", "validate_every=10", "precision=fp32"),
    *("batch_size=16", "net.channels=[8,16]", "warmup_steps=5", "holdout=0.25", "device=cpu"),
    *("threads=1", "optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.fused"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "walk.zarr"
    contract = Contract(
        observation={"state": Field(shape=(3,))}, action=Field(shape=(2,)), control_dt=0.1
    )
    rng = np.random.default_rng(0)
    made = EpisodeStore.create(path, contract)
    for _ in range(4):
        walk = rng.normal(size=(30, 5)).cumsum(axis=0).astype(np.float32)
        made.append({"state": walk[:, :3], "action": walk[:, 3:]})
    return path


def start(program: list[str], *arguments: str) -> subprocess.Popen:
    """Two processes of a program, such as ["-m", "policy.train"]."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [sys.executable, *launcher, *program, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, *, status: int = 0) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == status, output
    return output


def train_here(*settings: str) -> None:
    train.run(compose_config("train", settings))


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    train_here(f"store.path={store}", f"out={out}", *SETTINGS)
    return out


def assert_same_run(one: Path, other: Path) -> None:
    a, b = load(one), load(other)
    assert a.step == b.step == 30
    for name, values in a.policy_state.items():
        torch.testing.assert_close(values, b.policy_state[name], atol=1e-5, rtol=1e-4)
    for line, same in zip(
        read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl"), strict=True
    ):
        assert line == pytest.approx(same, rel=1e-4)


def test_two_processes_train_as_one_and_one_of_them_writes(store, alone, tmp_path):
    out = tmp_path / "run"
    shown = finish(start(["-m", "policy.train"], f"store.path={store}", f"out={out}", *SETTINGS))
    assert_same_run(alone, out)
    assert shown.count("done at step 30") == 1
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in alone.iterdir())


def test_ctrl_c_ends_all_and_another_number_of_processes_goes_on(store, alone, tmp_path, capsys):
    out = tmp_path / "run"
    waiting = [str(WAITING), "line", "5"]
    process = start(waiting, f"store.path={store}", f"out={out}", *SETTINGS)
    deadline = time.monotonic() + 150
    while not ((out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text()):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, and `torchrun` passes it on
    shown, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert f"go on with: cadence train resume={out}" in shown
    assert load(out).step == 5
    train_here(f"resume={out}")
    assert "resuming" in capsys.readouterr().out
    assert_same_run(alone, out)


def test_an_echo_of_the_first_signal_means_no_more_than_it():
    with Interruption(echo=60.0) as interruption:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
