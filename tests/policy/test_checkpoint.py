"""A checkpoint comes back bit for bit or says what is wrong; a crash never costs the last one."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.checkpoint import CheckpointError, load, load_trainer, resolve
from policy.checkpoint_doctor import examine_checkpoint
from policy.checkpoint_save import save

ROOT = Path(__file__).resolve().parents[2]
FILES = ("checkpoint.json", "policy.safetensors", "trainer.safetensors", "trainer.json")
HORIZONS = Horizons(obs=2, pred=8, action=4)
CONTRACT = Contract(
    observation={"state": Field(shape=(2,), unit="m")},
    action=Field(shape=(2,), unit="m"),
    control_dt=0.1,
    task="push",
)
CONFIG = {"net": {"_target_": "policy.nets.unet1d.UNet1d", "channels": [8, 16]}, "seed": 3}


class Policy(nn.Module):
    """Weights and statistics are all that a checkpoint needs of a policy."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)
        values = np.array([[0.0, 1.0], [2.0, 5.0]], dtype=np.float32)
        self.normalizer = Normalizer.fit(CONTRACT, {"state": values, "action": values})


def write(run_dir, step=100, *, keep=3, policy=None):
    torch.manual_seed(step)
    policy = policy or Policy()
    trainer = {"weights": {"net": torch.randn(4)}, "betas": (0.9, 0.99), "step_count": step}
    path = save(
        run_dir,
        step=step,
        policy=policy,
        contract=CONTRACT,
        horizons=HORIZONS,
        config=CONFIG,
        trainer=trainer,
        seconds=12.5,
        store_digest="abc",
        versions={"torch": torch.__version__},
        keep=keep,
    )
    return path, policy, trainer


def steps_in(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))


def change_meta(path, **changes):
    file = path / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_all_comes_back_bit_for_bit(tmp_path):
    path, policy, trainer = write(tmp_path)
    loaded = load(path)
    assert loaded.policy_state.keys() == policy.state_dict().keys()
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.policy_state[name], tensor)
    state = load_trainer(loaded)
    assert torch.equal(state["weights"]["net"], trainer["weights"]["net"])
    assert state["betas"] == (0.9, 0.99)
    assert (loaded.step, loaded.seconds, loaded.weights) == (100, 12.5, "ema")
    assert loaded.config == CONFIG
    assert loaded.versions == {"torch": torch.__version__}
    assert loaded.store_digest == "abc"
    assert loaded.horizons == HORIZONS
    assert loaded.contract.observation == CONTRACT.observation
    assert loaded.contract.statistics == policy.normalizer.digest()
    assert loaded.run_dir == tmp_path


def test_json_is_readable_and_says_which_weights(tmp_path):
    path, *_ = write(tmp_path)
    text = (path / "checkpoint.json").read_text()
    assert '"weights": "ema"' in text
    assert json.loads(text)["files"].keys() == set(FILES) - {"checkpoint.json"}


def test_contract_of_another_robot_is_refused(tmp_path):
    path, *_ = write(tmp_path)
    other = Contract(CONTRACT.observation, Field(shape=(2,), unit="px"), 0.1)
    with pytest.raises(ValueError, match=r"action.unit is 'm' in checkpoint, but 'px' in the env"):
        load(path).contract.check(other, this="checkpoint", that="the env")


def test_every_way_to_name_the_newest_checkpoint(tmp_path):
    old, *_ = write(tmp_path, 100)
    new, *_ = write(tmp_path, 200)
    folder = tmp_path / "checkpoints"
    for path in (tmp_path, folder, folder / "last", new, new / "policy.safetensors", str(new)):
        assert resolve(path) == new
    assert resolve(old) == old
    (folder / "last").unlink()
    assert resolve(tmp_path) == new


def test_older_checkpoints_go(tmp_path):
    for step in (100, 200, 300, 400):
        write(tmp_path, step, keep=2)
    assert steps_in(tmp_path) == ["step_00000300", "step_00000400"]


def test_same_step_may_be_written_again(tmp_path):
    write(tmp_path, 100)
    path, policy, _ = write(tmp_path, 100, policy=Policy())
    assert torch.equal(load(tmp_path).policy_state["net.weight"], policy.net.weight)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_is_found_in_every_file(tmp_path, name, damage):
    good, *_ = write(tmp_path, 100)
    path, *_ = write(tmp_path, 200)
    content = (path / name).read_bytes()
    if damage == "missing":
        (path / name).unlink()
    elif damage == "truncated":
        (path / name).write_bytes(content[:-7])
    else:
        middle = len(content) // 2
        flipped = b"\x00" if name == "checkpoint.json" else bytes([content[middle] ^ 1])
        (path / name).write_bytes(content[:middle] + flipped + content[middle + 1 :])
    with pytest.raises(CheckpointError) as caught:
        load_trainer(load(path))
    assert name in str(caught.value)
    assert str(good) in str(caught.value)
    if name != "checkpoint.json" and damage == "truncated":
        assert f"size is {len(content) - 7}, written was {len(content)}" in str(caught.value)
    (finding,) = examine_checkpoint(path)
    is_for_training = name.startswith("trainer")
    assert finding.severity == ("warning" if is_for_training else "error")
    expected = {"missing": "C003", "truncated": "C004", "altered": "C004"}[damage]
    if name == "checkpoint.json" and damage != "missing":
        expected = "C002"
    assert finding.code == ("C007" if is_for_training else expected)
    assert finding.fix


def test_newer_format_asks_for_an_upgrade(tmp_path):
    path, *_ = write(tmp_path)
    change_meta(path, format_version=2)
    with pytest.raises(CheckpointError, match=r"version 2.* up to 1: upgrade cadence"):
        load(path)
    assert [finding.code for finding in examine_checkpoint(path)] == ["C005"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "one"}, "lacks a format_version"),
        ({"contract": {}}, r"checkpoint.json has a wrong entry.*lacks \['action'"),
        ({"contract": "text"}, "wrong entry.*it must be an object"),
        ({"contract": {**CONTRACT.to_json(), "observation": []}}, "wrong entry"),
        ({"contract": CONTRACT.to_json()}, "lacks the horizons"),
        ({"files": {}}, "lacks the entry 'policy.safetensors'"),
        ({"versions": 3}, "wrong entry"),
        ({"step": "many"}, "wrong entry"),
        ({"config": None}, "wrong entry"),
    ],
)
def test_broken_entries_are_named(tmp_path, changes, message):
    path, *_ = write(tmp_path)
    change_meta(path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_missing_entry_is_named(tmp_path):
    path, *_ = write(tmp_path)
    file = path / "checkpoint.json"
    meta = json.loads(file.read_text())
    del meta["store_digest"]
    file.write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="lacks the entry 'store_digest'"):
        load(path)
    file.write_text("[]")
    with pytest.raises(CheckpointError, match="lacks a format_version"):
        load(path)


@pytest.mark.parametrize("make", [False, True])
def test_no_checkpoint_says_what_to_give(tmp_path, make):
    folder = tmp_path / "run"
    if make:
        folder.mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*run: give the folder"):
        load(folder)
    assert [finding.code for finding in examine_checkpoint(folder)] == ["C001"]


def test_weights_that_are_not_finite_are_found(tmp_path):
    policy = Policy()
    with torch.no_grad():
        policy.net.bias[0] = torch.nan
    path, *_ = write(tmp_path, policy=policy)
    (finding,) = examine_checkpoint(path)
    assert finding.code == "C006"
    assert "net.bias" in finding.message


def test_healthy_checkpoint_has_no_findings(tmp_path):
    write(tmp_path)
    assert examine_checkpoint(tmp_path) == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("same_step", [False, True])
def test_failed_write_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, error, same_step):
    path, policy, _ = write(tmp_path, 100)

    def fail(descriptor):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="could not be written") as caught:
        write(tmp_path, 100 if same_step else 200)
    if error == errno.ENOSPC:
        assert "No space left" in str(caught.value)
        assert "make room for" in str(caught.value)
    monkeypatch.undo()
    assert resolve(tmp_path) == path
    assert torch.equal(load(tmp_path).policy_state["net.weight"], policy.net.weight)
    assert sorted(p.name for p in path.parent.iterdir()) == ["last", path.name]


def test_failed_rename_restores_what_was_there(tmp_path, monkeypatch):
    path, policy, _ = write(tmp_path, 100)
    rename = os.rename

    def fail_for_new(source, target):
        if str(source).endswith(".partial"):
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_new)
    with pytest.raises(CheckpointError, match="broken"):
        write(tmp_path, 100)
    monkeypatch.undo()
    assert torch.equal(load(path).policy_state["net.weight"], policy.net.weight)


KILLED_WHILE_SAVING = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_checkpoint
from pathlib import Path

test_checkpoint.write(Path({run!r}), 100)
calls = 0
real = {{name: getattr(os, name) for name in ("fsync", "rename", "replace")}}

def count(name):
    def call(*args):
        global calls
        if calls == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return real[name](*args)
    return call

for name in real:
    setattr(os, name, count(name))
test_checkpoint.write(Path({run!r}), 200)
"""


@pytest.mark.parametrize("at", [0, 3, 5, 7])
def test_kill_while_saving_leaves_a_whole_checkpoint(tmp_path, at):
    """The calls counted: fsync of four files and the folder, rename, fsync, replace, fsync."""
    script = KILLED_WHILE_SAVING.format(
        root=str(ROOT), tests=str(Path(__file__).parent), run=str(tmp_path), at=at
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    loaded = load(tmp_path)
    assert loaded.step == 100
    load_trainer(loaded)
    is_left = any((tmp_path / "checkpoints").glob(".step_*"))
    assert [f.code for f in examine_checkpoint(tmp_path)] == (["C008"] if is_left else [])
    write(tmp_path, 300)
    assert load(tmp_path).step == 300
    assert examine_checkpoint(tmp_path) == []


def test_at_least_one_checkpoint_stays(tmp_path):
    with pytest.raises(ValueError, match="keep is 0"):
        write(tmp_path, keep=0)
