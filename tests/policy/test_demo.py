"""`cadence demo`: its folder is only ever its own, its stages resume, interruption is told."""

import json
from pathlib import Path

import pytest

from policy import demo
from policy.demo import VERBS, open_folder, play_stages, stage_overrides
from policy.demo_report import Stage
from policy.entry import compose_config


@pytest.fixture
def cfg(tmp_path):
    return compose_config("demo", [f"out={tmp_path / 'demo'}"])


def test_every_stage_composes_and_hands_over_to_the_next(cfg, tmp_path):
    out = tmp_path / "demo"
    stages = {verb: compose_config(verb, stage_overrides(cfg, verb, out)) for verb in VERBS}
    for verb, stage in stages.items():
        assert stage.out == str(out / verb)
    assert stages["train"].store.path == str(out / "collect" / "store.zarr")
    assert stages["evaluate"].checkpoint == stages["run"].checkpoint == str(out / "train")
    assert stages["evaluate"].episodes == cfg.evaluate.episodes
    starts = range(cfg.collect.seed, cfg.collect.seed + cfg.collect.starts)
    assert stages["evaluate"].seed not in starts
    assert stages["run"].seed not in starts


def test_a_stage_takes_any_setting_of_its_verb():
    cfg = compose_config("demo", ["+train.optimizer.lr=0.5", "+train.steps=null"])
    overrides = stage_overrides(cfg, "train", Path("there"))
    assert {"optimizer.lr=0.5", "steps=null"} < set(overrides)
    assert compose_config("train", overrides).optimizer.lr == 0.5


def test_interrupted_training_is_resumed_from_its_checkpoint(cfg, tmp_path):
    out = tmp_path / "demo"
    assert compose_config("train", stage_overrides(cfg, "train", out)).resume is None
    (out / "train" / "checkpoints" / "step_00000010").mkdir(parents=True)
    settings = compose_config("train", stage_overrides(cfg, "train", out))
    assert settings.resume == str(out / "train")


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path):
    mine = tmp_path / "train" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(ValueError, match="not a demo's folder"):
        open_folder(tmp_path, fresh=True)
    assert mine.read_text() == "years of work"


def test_fresh_removes_only_the_stages(tmp_path):
    out = tmp_path / "demo"
    assert open_folder(out, fresh=True) == {}
    for name in ("train/a", "notes/b"):
        (out / name).parent.mkdir()
        (out / name).write_text("")
    (out / "demo.json").write_text(json.dumps({"train": vars(Stage("train", "c", 1.0))}))
    assert open_folder(out, fresh=False) == {"train": Stage("train", "c", 1.0)}
    assert open_folder(out, fresh=True) == {}
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "notes"]


def test_interrupted_demo_goes_on_with_the_stage_it_hit(cfg, tmp_path, monkeypatch, capsys):
    out, worked = tmp_path / "demo", []

    def work(verb, outcome):
        def stage(settings):
            worked.append(verb)
            return outcome

        return stage

    for verb in VERBS:
        incomplete = {"complete": False} if verb == "evaluate" else None
        monkeypatch.setitem(VERBS, verb, work(verb, incomplete))
    with pytest.raises(KeyboardInterrupt):
        demo.run(cfg)
    assert worked == ["collect", "train", "evaluate"]
    told = capsys.readouterr().out
    assert "finished so far: collect, train" in told
    assert f"cadence demo fresh=false out={out}" in told

    worked.clear()
    monkeypatch.setitem(VERBS, "evaluate", work("evaluate", {"complete": True}))
    play_stages(cfg, out, open_folder(out, fresh=False))
    assert worked == ["evaluate", "run"]
    assert list(open_folder(out, fresh=False)) == list(VERBS)


def test_whole_job_in_small_ends_with_a_report(tmp_path, capsys):
    out = tmp_path / "demo"
    small = [
        f"out={out}",
        "collect.starts=2",
        "+train.steps=2",
        "+train.minutes=null",
        "+train.batch_size=8",
        "+train.net.channels=[8,16]",
        "+train.holdout=0.25",
        "evaluate.episodes=2",
        "+evaluate.videos=0",
        "run.episodes=1",
        "+run.seconds=0.4",
        "sketches=1",
        "samples=4",
    ]
    demo.run(compose_config("demo", small))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "put the cube on the target" in page
    assert "<animate" in page  # No film was made, so the rollout is drawn.
    assert "4 demonstrations" in page
    told = capsys.readouterr().out
    assert "Missed deadlines" in told
    assert told.rstrip().endswith(f"report: {out / 'report.html'}")
    control = json.loads((out / "run" / "run.json").read_text())
    n_ticks = control["timing"]["n_commands"] + control["timing"]["n_missed"]
    assert n_ticks == control["episodes"][0]["ticks"] <= 4
