"""`cadence fit` on a tiny store and an untrained network: what it writes, and that samplers run."""

import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from data.store import EpisodeStore
from data.types import Contract, ContractError, Field
from policy import fit
from policy.agent import Agent
from policy.checkpoint import CheckpointError, LoadedCheckpoint, load, resolve
from policy.diffusion.schedule import karras
from policy.entry import compose_config
from policy.sampler_fit import FILE, load_fit
from policy.train import prepare

N_EPISODES, N_STEPS = 4, 20
TO, TP, TA = 2, 8, 4


def make_store(path: Path, *, state_size: int = 3) -> EpisodeStore:
    contract = Contract(
        observation={"state": Field(shape=(state_size,))}, action=Field(shape=(2,)), control_dt=0.1
    )
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(path, contract)
    for _ in range(N_EPISODES):
        walk = rng.normal(size=(N_STEPS, state_size + 2)).cumsum(axis=0).astype(np.float32)
        store.append({"state": walk[:, :state_size], "action": walk[:, state_size:]})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    return make_store(tmp_path_factory.mktemp("store") / "walk.zarr")


@pytest.fixture(scope="module")
def untrained(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    settings = [
        f"store.path={store.path}",
        f"horizons={{obs:{TO},pred:{TP},action:{TA}}}",
        "net.channels=[8,16]",
        "encoder.hidden=16",
        "precision=fp32",
        "batch_size=8",
        "holdout=0",
        "device=cpu",
        "threads=1",
    ]
    prepare(compose_config("train", settings), store, out).save()
    return out


@pytest.fixture
def checkpoint(untrained, tmp_path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(untrained, tmp_path / "run", symlinks=True))


def settings(checkpoint, store, *more):
    small = ["n_steps=[2,3]", "n_reference=6", "n_windows=8", "n_anchors=4"]
    overrides = [f"checkpoint={checkpoint}", f"store.path={store.path}", *small, *more]
    return compose_config("fit", overrides)


def test_fit_lies_beside_the_checkpoint_which_stays_as_it_was(checkpoint, store, capsys):
    before = {p: p.read_bytes() for p in resolve(checkpoint).iterdir()}
    file = fit.run(settings(checkpoint, store))
    assert file == resolve(checkpoint) / FILE
    assert str(file) in capsys.readouterr().out
    assert {p: p.read_bytes() for p in resolve(checkpoint).iterdir() if p != file} == before
    load(checkpoint)


def test_grids_are_levels_of_the_reference_and_anchors_are_in_the_scale_of_the_network(
    checkpoint, store
):
    fit.run(settings(checkpoint, store))
    fitted = load_fit(resolve(checkpoint))
    reference = karras(6, sigma_min=0.01, sigma_max=20.0).tolist()
    assert sorted(fitted.grids) == [2, 3]
    for n, grid in fitted.grids.items():
        assert len(grid) == n + 1
        assert set(grid.tolist()) <= set(reference)
        assert grid[0] == reference[0]
        assert grid[-1] == 0
        assert (grid[:-1] > grid[1:]).all()
    assert fitted.anchors is not None
    assert fitted.anchors.shape == (4, TP, 2)
    assert fitted.anchors.abs().max() <= 1  # of actions scaled to [-1, 1] by their limits


def test_one_anchor_is_the_mean_of_all_chunks(checkpoint, store):
    fit.run(settings(checkpoint, store, "n_anchors=1"))
    anchors = load_fit(resolve(checkpoint)).anchors
    actions = store.read("action").astype(np.float64)
    low, high = actions.min(axis=0), actions.max(axis=0)
    scaled = (2 * (actions - low) / (high - low) - 1).reshape(N_EPISODES, N_STEPS, 2)
    ahead = np.arange(TP)
    chunks = [
        episode[np.minimum(t + ahead, N_STEPS - 1)]
        for episode in scaled
        for t in range(N_STEPS - TA + 1)
    ]
    assert anchors is not None
    np.testing.assert_allclose(anchors[0].numpy(), np.mean(chunks, axis=0), atol=1e-5)


@pytest.mark.parametrize("name", ["fitted", "anchored"])
def test_samplers_run_with_what_was_fitted(checkpoint, store, name):
    more = ["sampler.n_steps=3"] if name == "fitted" else []
    cfg = compose_config("evaluate", [f"sampler={name}", "env=pillar", "checkpoint=none", *more])
    with pytest.raises(Exception, match="cadence fit"):
        Agent.load(checkpoint, instantiate(cfg.sampler))
    fit.run(settings(checkpoint, store))
    agent = Agent.load(checkpoint, instantiate(cfg.sampler), rows=2)
    observation = {"state": np.zeros((1, TO, 3), dtype=np.float32)}
    chunk = agent.chunk(agent.start([0]), observation)
    assert chunk.shape == (1, TP, 2)
    assert np.isfinite(chunk).all()
    if name == "fitted":
        assert agent.nfe == 3


def test_as_many_steps_as_the_reference_end_where_it_ends(checkpoint, store, capsys):
    """Both grids are the reference then, so both errors are exactly 0."""
    fit.run(settings(checkpoint, store, "n_steps=[6]"))
    assert "6 steps: fitted 0.0000, karras 0.0000" in capsys.readouterr().out


def test_printed_errors_are_those_of_sampling_from_the_same_noise(capsys):
    """With the exact denoiser of a Gaussian around 0, DDIM only scales the noise."""
    variance = 0.3**2

    def gaussian(x, sigma, cond):
        s = sigma[..., None]
        return variance / (variance + s**2) * x

    def scaled(grid):
        x = float(grid[0])
        for s, s_next in itertools.pairwise(grid.tolist()):
            x *= (variance + s * s_next) / (variance + s**2)
        return x

    noise = torch.randn(16, TP, 2, generator=torch.Generator().manual_seed(0))
    start = fit.Start(gaussian, torch.zeros(16, 1), noise)
    grids = fit.fit_and_compare(start, [2, 4], 30, (0.01, 20.0))
    reference = scaled(karras(30, sigma_min=0.01, sigma_max=20.0))
    size = noise.square().mean().sqrt().item()
    printed = capsys.readouterr().out
    for n, grid in grids.items():
        usual = karras(n, sigma_min=0.01, sigma_max=20.0)
        expected = [abs(scaled(one) - reference) * size for one in (grid, usual)]
        line = re.search(rf" {n} steps: fitted ([\d.]+), karras ([\d.]+)", printed)
        assert line is not None
        # Four decimals are printed.
        assert [float(line[1]), float(line[2])] == pytest.approx(expected, abs=1e-4)
        assert float(line[1]) < float(line[2])


def test_earlier_fit_is_replaced_also_where_it_is_damaged(checkpoint, store, capsys):
    file = fit.run(settings(checkpoint, store))
    content = file.read_bytes()
    assert "is replaced" not in capsys.readouterr().out
    file.write_bytes(b"damaged")
    fit.run(settings(checkpoint, store))
    assert "is replaced" in capsys.readouterr().out
    assert file.read_bytes() == content  # the same seed, the same fit
    fit.run(settings(checkpoint, store, "n_steps=[2]", "seed=1"))
    assert sorted(load_fit(resolve(checkpoint)).grids) == [2]


def test_store_of_another_contract_is_refused(checkpoint, tmp_path):
    other = make_store(tmp_path / "other.zarr", state_size=4)
    with pytest.raises(ContractError, match=r"state\.shape is \(3,\) in checkpoint .* store"):
        fit.run(settings(checkpoint, other))
    assert not (resolve(checkpoint) / FILE).exists()


def test_store_that_was_not_trained_on_is_told(checkpoint, store, tmp_path, capsys):
    fit.run(settings(checkpoint, store))
    assert "another store" not in capsys.readouterr().out
    other = make_store(tmp_path / "other.zarr")
    other.append({"state": np.zeros((9, 3)), "action": np.zeros((9, 2))})
    fit.run(settings(checkpoint, other))
    assert "another store" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("n_steps=[2,7]", r"n_steps holds 7: give whole numbers in 1\.\.6"),
        ("n_steps=[0]", r"n_steps holds 0"),
        ("n_steps=[2.5]", r"n_steps holds 2\.5"),
        ("n_steps=[true,2]", r"n_steps holds True"),
        ("n_steps=4", r"n_steps is 4, give a list"),
        ("n_steps=[]", r"n_steps is \[\], give a list"),
        ("n_windows=0", r"n_windows is 0"),
        ("n_windows=69", r"n_windows is 69, store .* has 68 windows"),
        ("n_anchors=69", r"n_anchors is 69, store .* has 68 windows"),
        ("n_reference=0", r"n_reference is 0"),
        ("sigma_max=0.001", r"need 0 < sigma_min < sigma_max"),
        ("sigma_min=-1", r"sigma_min is -1 and sigma_max 20\.0: need 0 < sigma_min"),
        ("sigma_min=0", r"sigma_min is 0 and"),
        ("sigma_max=nan", r"sigma_max nan"),
    ],
)
def test_impossible_settings_are_refused(checkpoint, store, wrong, message):
    with pytest.raises(ValueError, match=message):
        fit.run(settings(checkpoint, store, wrong))


def trained_at(loss):
    """A checkpoint of which only the configuration of the training is known."""
    return cast(LoadedCheckpoint, SimpleNamespace(config={"loss": loss}))


def test_levels_are_the_configured_ones_that_were_trained():
    cfg = OmegaConf.create({"sigma_min": 0.01, "sigma_max": 20.0})
    density = {"sigma_min": 0.02, "sigma_max": 80.0}
    assert fit.levels(cfg, trained_at({"corruption": {"density": density}})) == (0.02, 20.0)
    density = {"sigma_min": 0.002, "sigma_max": 5.0}
    assert fit.levels(cfg, trained_at({"corruption": {"density": density}})) == (0.01, 5.0)
    assert fit.levels(cfg, trained_at({})) == (0.01, 20.0)


def test_grids_keep_to_the_levels_that_were_trained(checkpoint, store):
    """The training's density goes from 0.02 to 5 here."""
    rewrite_config(checkpoint, ("loss", "corruption", "density"), sigma_min=0.02, sigma_max=5.0)
    fit.run(settings(checkpoint, store, "n_steps=[6]"))
    (grid,) = load_fit(resolve(checkpoint)).grids.values()
    assert grid[0].item() == pytest.approx(5.0)
    assert grid[-2].item() == pytest.approx(0.02)


def rewrite_config(checkpoint, where, **entries):
    """Change what a checkpoint says of its training."""
    file = resolve(checkpoint) / "checkpoint.json"
    meta = json.loads(file.read_text())
    node = meta["config"]
    for key in where:
        node = node[key]
    node.update(entries)
    file.write_text(json.dumps(meta))


def test_goals_of_a_strangers_checkpoint_are_not_built(checkpoint, store, tmp_path):
    """Hydra would call what it names."""
    marker = tmp_path / "marker"
    stranger = {"_target_": "os.mkdir", "path": str(marker)}
    rewrite_config(checkpoint, (), goals=stranger)
    with pytest.raises(CheckpointError, match=r"wants to build 'os\.mkdir'.*do not trust"):
        fit.run(settings(checkpoint, store))
    assert not marker.exists()


def test_a_network_that_predicts_no_numbers_is_refused():
    start = fit.Start(lambda x, sigma, cond: x * torch.nan, torch.zeros(2, 1), torch.ones(2, 8, 2))
    with pytest.raises(ValueError, match="not finite"):
        fit.fit_and_compare(start, [2], 4, (0.01, 20.0))
