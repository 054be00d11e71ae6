"""`cadence evaluate` on an untrained network: what it says and keeps when something is odd."""

import errno
import os

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from policy import evaluate
from policy.checkpoint import load
from policy.entry import compose_config
from policy.play import Episode
from policy.statistics import bootstrap_interval
from policy.train import prepare


def config(checkpoint, out, *more):
    small = ["episodes=2", "num_envs=2", "videos=0"]
    overrides = [f"checkpoint={checkpoint}", f"out={out}", *small, *more]
    return compose_config("evaluate", overrides)


def test_calls_are_counted_at_a_steady_pace_and_in_all(pillar_checkpoint, tmp_path):
    results = evaluate.run(config(pillar_checkpoint, tmp_path, "env=pillar", "sampler=rti"))
    assert results["calls_per_action"] == 4 / 8  # three steps, one for the gripper
    lengths = [episode["length"] for episode in results["episodes"]]
    calls = sum(8 + 4 * -(-length // 8) for length in lengths)
    assert results["calls_per_action_in_all"] == pytest.approx(calls / sum(lengths))


def test_a_full_disk_does_not_cost_the_answer(pillar_checkpoint, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(evaluate, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate.run(config(pillar_checkpoint, tmp_path, "env=pillar"))
    assert "success 0.000 [" in capsys.readouterr().out


def test_the_return_is_told_where_nothing_succeeded():
    lost = [Episode(0, score=0.1, total=2.0), Episode(1, score=0.3, total=5.0)]
    summary = {**evaluate.summarise(lost), "calls_per_action": 1.0}
    assert summary["total"] == 3.5
    assert summary["total_interval"] == bootstrap_interval([2.0, 5.0])
    assert "]  return 3.500 [2.000, 5.000]  score 0.200 [" in evaluate.summary_line(summary)
    won = [*lost, Episode(2, score=1.0, success=True, total=9.0)]
    summary = {**evaluate.summarise(won), "calls_per_action": 1.0}
    assert "return" not in evaluate.summary_line(summary)


def test_another_task_is_pointed_out(pillar_checkpoint, tmp_path, capsys):
    evaluate.run(config(pillar_checkpoint, tmp_path / "a", "env=pick_place"))
    printed = capsys.readouterr().out
    assert "learned 'put the cube on the target behind the pillar'" in printed
    assert "is 'put the cube on the target'" in printed
    evaluate.run(config(pillar_checkpoint, tmp_path / "b", "env=pillar"))
    assert "learned" not in capsys.readouterr().out


def test_a_delay_longer_than_a_plan_is_refused(pillar_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="inference_delay is 9"):
        evaluate.run(config(pillar_checkpoint, tmp_path, "env=pillar", "inference_delay=9"))


def test_a_run_of_an_older_program_can_be_resumed(pillar_checkpoint, tmp_path):
    """Its configuration has no symmetry."""
    config = {k: v for k, v in load(pillar_checkpoint).config.items() if k != "symmetry"}
    cfg = OmegaConf.create(config)
    assert isinstance(cfg, DictConfig)
    assert prepare(cfg, instantiate(cfg.store), tmp_path).trainer.symmetry is None
