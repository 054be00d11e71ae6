"""`cadence edit`: its grammar, what it says, and that it says before it does."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from data.codec import Jpeg, codec_of
from data.store import EpisodeStore
from data.types import Contract, Field
from policy import edit
from policy.entry import compose_config

CONTRACT = Contract(
    {"state": Field((2,), unit=("m", "rad")), "camera": Field((16, 16, 3), "uint8")},
    Field((1,)),
    0.1,
)


def make(path: Path, n: int = 5) -> Path:
    with EpisodeStore.create(path, CONTRACT) as store:
        for index in range(n):
            length = 4 + index
            store.append(
                {
                    "state": np.full((length, 2), index, np.float32),
                    "camera": np.full((length, 16, 16, 3), index, np.uint8),
                    "action": np.zeros((length, 1)),
                },
                seed=index,
                success=index % 2 == 0,
                operator="Anna Smith" if index < 2 else "ben",
            )
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "store.zarr")


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "store.zarr")


@pytest.fixture
def cadence_edit(monkeypatch, capsys):
    """Runs the verb; returns its exit status, and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["edit", *map(str, arguments)])
        try:
            edit.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def seeds(path: Path) -> list[int]:
    return [entry["seed"] for entry in EpisodeStore.open(path).episode_metadata]


def test_it_says_what_is_in_a_store(cadence_edit, path):
    status, said = cadence_edit(path)
    assert status == 0
    assert f"{path}: 5 episodes, 30 steps" in said
    assert "steps: 4 to 8 an episode" in said
    assert "field state: float32 [2] m, rad" in said
    assert "field camera: uint8 [16, 16, 3]\n" in said
    assert "success: true in 3, false in 2" in said
    assert 'operator: "ben" in 3, "Anna Smith" in 2' in said
    assert "chosen" not in said


def test_many_values_are_said_in_short(cadence_edit, tmp_path):
    path = make(tmp_path / "many.zarr", 9)
    with EpisodeStore.open(path, mode="a") as store:
        store.edit(metadata={index: {"seed": index, "name": f"n{index}"} for index in range(9)})
    said = cadence_edit(path)[1]
    assert "seed: 0 to 8 in 9" in said
    assert '"n5" in 1, 3 more' in said


@pytest.mark.parametrize(
    ("chosen", "episodes"),
    [
        (["filter=success==true"], [0, 2, 4]),
        (["filter=seed<3"], [0, 1, 2]),
        (["filter=operator == Anna Smith"], [0, 1]),
        (["filter=operator~anna and success!=true"], [1]),
        (["filter=[seed>0,seed<=2]"], None),
        (["filter=['seed>0','seed<=2']"], [1, 2]),
        (["filter='seed>=4'"], [4]),
        (["filter=steps>6", "episodes=[0,2-3]"], [3]),
        (["episodes=3"], [3]),
        (["episodes=1-3"], [1, 2, 3]),
        (["episodes=[4,0]"], [0, 4]),
    ],
)
def test_episodes_are_chosen(cadence_edit, path, chosen, episodes):
    status, said = cadence_edit(path, *chosen)
    if episodes is None:  # Hydra's own grammar wants quotes within a list.
        assert status == 2
        return
    assert status == 0, said
    n_steps = sum(4 + index for index in episodes)
    numbers = ", ".join(map(str, episodes))
    assert f"chosen: {len(episodes)} of 5 episodes ({n_steps} steps): {numbers}\n" in said


def test_hide_keep_and_show(cadence_edit, path):
    before = EpisodeStore.open(path).digest()
    assert (
        "would hide 2 of 5"
        in cadence_edit(path, "do=hide", "filter=success==false", "dry_run=true")[1]
    )
    assert EpisodeStore.open(path).digest() == before
    status, said = cadence_edit(path, "do=hide", "filter=success==false")
    assert (status, "done: hide 2 of 5 episodes (12 steps): 1, 3" in said) == (0, True)
    assert seeds(path) == [0, 2, 4]
    assert "3 episodes, 18 steps, 2 more are hidden" in cadence_edit(path)[1]
    assert cadence_edit(path, "do=keep", "episodes=[1]")[0] == 0
    assert seeds(path) == [2]
    status, said = cadence_edit(path, "do=show")
    assert (status, "show 4 hidden episodes" in said) == (0, True)
    assert EpisodeStore.open(path).digest() == before


def test_labels(cadence_edit, path):
    labels = ["labels.operator=carl", "labels.success=null", "labels.grade=2.5"]
    status, _ = cadence_edit(path, "do=label", "episodes=[1-2]", *labels)
    assert status == 0
    metadata = EpisodeStore.open(path).episode_metadata
    assert metadata[1] == {"seed": 1, "operator": "carl", "grade": 2.5}
    assert metadata[3] == {"seed": 3, "success": False, "operator": "ben"}


def test_copy_with_another_codec(cadence_edit, path, tmp_path):
    out = tmp_path / "new.zarr"
    status, said = cadence_edit(
        path, "do=copy", f"out={out}", "filter=seed>=3", "codec=jpeg", "codec.quality=80"
    )
    assert (status, f"done: write 2 of 5 episodes (15 steps): 3, 4 into {out}" in said) == (0, True)
    assert seeds(out) == [3, 4]
    assert codec_of(EpisodeStore.open(out).array("camera")) == Jpeg(80)


def test_merge_and_append(cadence_edit, path, tmp_path):
    other, out = make(tmp_path / "other.zarr", 2), tmp_path / "all.zarr"
    status, said = cadence_edit(path, "do=merge", f"with=[{other}]", f"out={out}")
    assert (status, "write 7 episodes of 2 stores" in said) == (0, True)
    assert seeds(out) == [0, 1, 2, 3, 4, 0, 1]
    status, said = cadence_edit(path, "do=append", f"with=[{other},{other}]")
    assert (status, "append 4 episodes of 2 stores" in said) == (0, True)
    assert seeds(path) == [0, 1, 2, 3, 4, 0, 1, 0, 1]


def test_an_interrupted_append_says_how_far_it_came(path, tmp_path, monkeypatch, capsys):
    other = make(tmp_path / "other.zarr", 3)
    add, calls = EpisodeStore.append, []

    def interrupted(store, rows, /, **metadata):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(store, rows, **metadata)

    monkeypatch.setattr(EpisodeStore, "append", interrupted)
    cfg = compose_config("edit", [f"path={path}", "do=append", f"with=[{other}]"])
    with pytest.raises(KeyboardInterrupt):
        edit.run(cfg)
    assert "2 episodes were appended, from episode 5 on" in capsys.readouterr().out
    assert seeds(path) == [0, 1, 2, 3, 4, 0, 1]


def test_split(cadence_edit, path, tmp_path):
    out = tmp_path / "parts"
    status, said = cadence_edit(path, "do=split", "fraction=0.4", f"out={out}", "seed=3")
    assert (status, f"into {out}/train.zarr and val.zarr" in said) == (0, True)
    parts = seeds(out / "train.zarr"), seeds(out / "val.zarr")
    assert (len(parts[1]), sorted(parts[0] + parts[1])) == (2, [0, 1, 2, 3, 4])
    assert (
        "labels of its episodes"
        in cadence_edit(path, "do=split", "fraction=0.4", "seed=3", "dry_run=true")[1]
    )
    assert "split" not in EpisodeStore.open(path).episode_metadata[0]
    assert cadence_edit(path, "do=split", "fraction=0.4", "seed=3")[0] == 0
    labels = {e["seed"]: e["split"] for e in EpisodeStore.open(path).episode_metadata}
    assert [seed for seed, label in labels.items() if label == "val"] == parts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["do=remove"], "do is 'remove', choose one of list, hide"),
        (["do=hide"], "do=hide needs filter=... or episodes=...: which ones?"),
        (["do=keep"], "do=keep needs filter=... or episodes=...: which ones?"),
        (["do=show", "episodes=[1]"], "do=show is for all episodes"),
        (["do=label", "episodes=[1]"], "labels.KEY=VALUE and do=label go together"),
        (["labels.a=1"], "labels.KEY=VALUE and do=label go together"),
        (["do=merge", "out=x"], "with=[STORE,...] goes with do=merge"),
        (["with=[a]"], "with=[STORE,...] goes with do=merge"),
        (["do=copy"], "please give out=..."),
        (["do=hide", "episodes=[1]", "out=x"], "changes the store in place: leave out"),
        (["filter=success"], "is not KEY OPERATOR VALUE"),
        (["filter=3"], "is not KEY OPERATOR VALUE"),
        (["filter=operator<3"], "which has no order with 3"),
        (["episodes=[x]"], "episodes has 'x', give numbers and ranges"),
        (["episodes=[-1]"], "episodes has -1, give numbers and ranges"),
        (["episodes=[true]"], "episodes has True, give numbers and ranges"),
        (["episodes=[5-3]"], "episodes has the range 5-3, which is empty: give 3-5"),
        (["episodes=[3-5]"], "choose 0..4"),
        (["episodes=[0-99999999999]"], "episodes has 0-99999999999, no store has as many"),
        (["do=split", "fraction=2"], "must be in [0, 1)"),
        (["do=split", "fraction=2", "dry_run=true"], "must be in [0, 1)"),
        (["do=keep", "filter=seed==99"], "do=keep would hide all episodes"),
        (["do=append", "with=[store.zarr]", "dry_run=true"], "cannot be appended to itself"),
        (["do=copy", "out=store.zarr", "dry_run=true"], "store.zarr exists already"),
        (["do=split", "out=store.zarr/a", "dry_run=true"], "lies within the store"),
        (["do=copy", "out=x", "codec=jpeg", "codec.quality=0"], "quality is 0"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(
    cadence_edit, path, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    before = EpisodeStore.open(path).digest()
    status, said = cadence_edit(path, *arguments)
    assert (status, message in said) == (1, True), said
    assert "Traceback" not in said
    assert EpisodeStore.open(path).digest() == before
    assert [p.name for p in tmp_path.iterdir()] == ["store.zarr"]


def test_a_filter_must_be_a_text_or_a_list():
    with pytest.raises(ValueError, match="filter is 3, it must be a text"):
        edit.conditions_of(3)


def test_no_path_and_a_wrong_one(cadence_edit, tmp_path):
    assert "please give path=..." in cadence_edit()[1]
    assert "nothing.zarr does not exist" in cadence_edit(tmp_path / "nothing.zarr")[1]


def test_what_is_being_recorded_is_planned_but_not_edited_by_another(
    cadence_edit, path, monkeypatch
):
    def refuse(where):
        raise ValueError(f"{where} is being written to by somebody")

    monkeypatch.setattr("data.store.acquire", refuse)
    arguments = (path, "do=hide", "episodes=[0]")
    assert "would hide 1 of 5" in cadence_edit(*arguments, "dry_run=true")[1]
    assert "is being written to by somebody" in cadence_edit(*arguments)[1]
