"""The line-up: what a config may say, and what it is told where it says something else."""

import re

import pytest
from omegaconf import OmegaConf

from policy.benches.lineup import Row, flat, read_groups
from policy.entry import CONFIGS


def group(**entries):
    return {"net": "unet1d_small", "rows": [{"sampler": "ddim_8"}], **entries}


@pytest.mark.parametrize("file", sorted((CONFIGS / "lineup").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_line_up_names_what_exists(file):
    config = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(config, dict)
    for each in read_groups(config["groups"]):
        assert (CONFIGS / "net" / f"{each.net}.yaml").is_file()
        assert all((CONFIGS / "sampler" / f"{row.sampler}.yaml").is_file() for row in each.rows)


def test_a_group_is_read_with_its_defaults():
    row = {"sampler": "rti", "set": {"n_steps": 2}, "engine": "fused", "weights": "int8"}
    (made,) = read_groups([group(rows=[row, {"sampler": "ddim_8"}], threads=1, peers=[4])])
    assert (made.net, made.threads, made.peers) == ("unet1d_small", 1, (4,))
    assert made.rows == (Row("rti", {"n_steps": 2}, "fused", "int8"), Row("ddim_8"))
    assert made.rows[0].name == "rti n_steps=2, fused int8"
    assert made.rows[1].name == "ddim_8, eager fp32"


def test_what_differs_is_in_the_name():
    named = {Row("rti", action=action).name for action in (None, 1, 2)}
    named |= {Row("rti", {"restart": {"sigma": 0.3}}).name, Row("rti", weights="bf16").name}
    assert len(named) == 5


def test_nested_settings_are_flattened():
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == [("a.b", 1), ("a.c.d", 2), ("e", 3)]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "lineup.groups is empty"),
        ("unet1d_small", "lineup.groups is empty"),
        (["unet1d_small"], "a group of the line-up is"),
        ([{"rows": [{"sampler": "ddim_8"}]}], "needs net"),
        ([group(rows=[])], "has no rows"),
        ([group(rows="ddim_8")], "rows is 'ddim_8'"),
        ([group(rows=["ddim_8"])], "a row of the line-up is ddim_8: it needs sampler"),
        ([group(rows=[{"engine": "fused"}])], "needs sampler"),
        ([group(rows=[{"sampler": "ddim_8", "wieghts": "int8"}])], "may have"),
        ([group(rows=[{"sampler": "ddim_8"}] * 2)], "rows that are the same"),
        ([group(rows=[{"sampler": "ddim_8", "engine": "warp"}])], "engine is 'warp', choose"),
        ([group(rows=[{"sampler": "ddim_8", "weights": "int4"}])], "weights is 'int4', choose"),
        ([group(rows=[{"sampler": "ddim_8", "set": 3}])], "set is 3"),
        ([group(rows=[{"sampler": "ddim_8", "action": 0}])], "action is 0"),
        ([group(rows=[{"sampler": "ddim_8", "action": True}])], "action is True"),
        ([group(threads=0)], "threads is"),
        ([group(threads="all")], "threads is"),
        ([group(peers=[0])], "peers is"),
        ([group(peers=16)], "peers is"),
    ],
)
def test_a_wrong_line_up_is_refused(groups, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_groups(groups)
