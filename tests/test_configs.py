"""Every configuration composes, and what it names exists."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from policy.cli import VERBS
from policy.entry import CONFIGS, compose_config

PLUG_INS = sorted(
    p for p in CONFIGS.rglob("*.yaml") if p.parent != CONFIGS and p.parent.name != "experiment"
)
EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yaml"))
RECIPES = sorted((CONFIGS / "recipe").glob("*.yaml"))


def targets(node: object) -> Iterator[str]:
    if isinstance(node, DictConfig):
        for key in node:
            value = node._get_node(key)
            if key == "_target_":
                yield str(node[key])
            else:
                yield from targets(value)
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from targets(node._get_node(index))


@pytest.mark.parametrize("verb", VERBS)
def test_verb_composes(verb):
    # Groups without a default are given one, as a user would.
    is_played = ("collect", "evaluate", "run", "frontier", "finetune", "delays", "calibrate")
    assert compose_config(verb, ["env=pillar"] if verb in is_played else [])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_composes_without_a_plus(path):
    assert compose_config("train", [f"experiment={path.stem}"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_composes_and_brings_its_environment(path):
    assert compose_config("finetune", [f"recipe={path.stem}"]).env


def test_what_an_objective_needs_of_the_chain_outweighs_a_recipe():
    cfg = compose_config("finetune", ["recipe=pillar_poor", "objective=awr"])
    assert cfg.chain.explore_std == 0  # Imitated noise would add up.
    assert cfg.chain.sigmas == compose_config("finetune", ["recipe=pillar_poor"]).chain.sigmas


@pytest.mark.parametrize("path", PLUG_INS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_targets_exist(path: Path):
    for target in targets(OmegaConf.load(path)):
        assert callable(get_object(target))


def test_a_mistyped_experiment_is_refused():
    with pytest.raises(HydraException, match="push_t_humn"):
        compose_config("train", ["experiment=push_t_humn"])


def test_a_mistyped_override_is_refused():
    with pytest.raises(HydraException, match="batchsize"):
        compose_config("train", ["batchsize=3"])


def test_no_resolver_computes():
    for path in CONFIGS.rglob("*.yaml"):
        assert "${eval" not in path.read_text()
        assert "${oc." not in path.read_text()
