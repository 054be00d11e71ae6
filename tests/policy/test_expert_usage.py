"""Use of experts over noise levels: the prior over it, its figure, and what it costs."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.joint_contract import TASK, task_field
from data.store import EpisodeStore
from data.types import Contract, Field
from policy import bench_experts, experts
from policy.build import from_checkpoint
from policy.checkpoint import load
from policy.entry import compose_config
from policy.experts import conditions, draw, served
from policy.nets.expert_usage import DiffusionPrior, divergence, prior, usage
from policy.nets.experts import Experts
from policy.nets.transformer import Transformer
from policy.train import Run, prepare

SIZES: dict = {"action_size": 2, "cond_size": 4, "pred_horizon": 5}
NET: Any = partial(
    Transformer,
    size=16,
    n_layers=3,
    conditioning="attention",
    cond_in="prefix",
    feed_forward=partial(Experts, n_experts=4, top_k=2, expansion=1, balance=0.5),
)


def seeded(make, seed=0) -> Any:
    torch.manual_seed(seed)
    return make(**SIZES)


def test_usage_is_a_distribution_for_each_layer_and_level():
    net = seeded(NET)
    c_noise = torch.linspace(-60, 40, 11)
    probabilities = usage(net, c_noise)
    assert probabilities.shape == (3, 11, 4)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(3, 11))
    # Levels are looked at one by one.
    torch.testing.assert_close(usage(net, c_noise[3:4]), probabilities[:, 3:4])


@pytest.mark.parametrize("conditioning", ["memory", "adaln", "attention"])
def test_usage_says_which_experts_an_action_uses(conditioning):
    """The most probable ones of its level, in the layers' own words."""
    net = seeded(partial(NET, conditioning=conditioning, cond_in="prefix")).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    chosen = usage(net, torch.tensor([10.0])).topk(2).indices[:, 0]
    x, cond = torch.randn(1, 5, 2), torch.randn(1, 4)
    seen = []
    for block in net.blocks:
        block.feed_forward.register_forward_hook(lambda layer, args, out: seen.append(args[1]))
    net(x, torch.full((1, 5), 10.0), cond)
    for block, noise, wanted in zip(net.blocks, seen, chosen, strict=True):
        found, _ = block.feed_forward._choose(block.feed_forward.logits(noise), is_drawn=False)
        assert (found[0, -5:].sort().values == wanted.sort().values).all()


def test_a_network_without_experts_is_refused():
    with pytest.raises(ValueError, match=r"Transformer has no experts .*net=moe_small"):
        usage(Transformer(**SIZES, size=8), torch.zeros(2))
    with pytest.raises(ValueError, match="Transformer has no experts that a prior"):
        DiffusionPrior(**SIZES, net=partial(Transformer, size=8))
    with pytest.raises(ValueError, match=r"lowest is 3.* and highest is 3"):
        DiffusionPrior(**SIZES, net=NET, lowest=3.0, highest=3.0)


def test_experts_outside_of_a_transformer_are_refused():
    def net(**sizes: int) -> torch.nn.Module:
        return torch.nn.Sequential(Experts(size=8))

    with pytest.raises(ValueError, match=r"Sequential is no transformer.* net\.net"):
        DiffusionPrior(**SIZES, net=net)
    with pytest.raises(ValueError, match="Sequential has experts, but no embed_levels"):
        usage(net(), torch.zeros(2))


@pytest.mark.parametrize(("n_layers", "n_experts", "top_k"), [(4, 4, 2), (3, 5, 1), (2, 3, 3)])
def test_prior_gives_every_level_its_experts_and_slides(n_layers, n_experts, top_k):
    wished = prior(torch.linspace(0, 1, 101), n_layers=n_layers, n_experts=n_experts, top_k=top_k)
    assert wished.shape == (n_layers, 101, n_experts)
    assert ((wished == 0) | (wished == 1 / top_k)).all()
    torch.testing.assert_close(wished.sum(dim=-1), torch.ones(n_layers, 101))
    assert (wished[:, 0, :top_k] > 0).all()
    assert (wished[:, -1, -top_k:] > 0).all()
    # A layer's experts leave from below and come from above, one at a time.
    centre = (wished * torch.arange(n_experts)).sum(dim=-1)
    steps = centre.diff(dim=1)
    assert (steps >= -1e-6).all()
    assert steps.max() <= 1 + 1e-6
    # All experts are someone's, if a token does not use all anyway.
    assert (wished.amax(dim=1) > 0).all()


def test_experts_of_more_than_half_the_layer_serve_all_levels():
    """With 2 of 3 the middle one never leaves: the shared expert of the paper."""
    wished = prior(torch.linspace(0, 1, 50), n_layers=4, n_experts=3, top_k=2)
    assert (wished[:, :, 1] == 0.5).all()


def test_divergence_is_zero_for_the_same_and_ln_2_for_the_disjoint():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64)
    assert divergence(p, p).item() == pytest.approx(0, abs=1e-12)
    assert divergence(p, p.flip(1)).item() == pytest.approx(math.log(2))
    # (1, 0) to (1/2, 1/2): H(3/4, 1/4) - H(1/2, 1/2) / 2.
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25) - math.log(2) / 2
    assert divergence(q, torch.full_like(q, 0.5)).item() == pytest.approx(expected)


def test_penalty_is_the_networks_and_the_divergence():
    net = seeded(partial(DiffusionPrior, net=NET, weight=2.0, lowest=-50.0, highest=50.0))
    c_noise, cond = torch.tensor([[-50.0, -20.0, 0.0, 20.0, 50.0]]), torch.zeros(1, 4)
    net.train()
    torch.manual_seed(1)
    own = net.net.penalty(c_noise, cond)
    torch.manual_seed(1)
    total = net.penalty(c_noise, cond)
    wished = prior(torch.tensor([0, 0.3, 0.5, 0.7, 1]), n_layers=3, n_experts=4, top_k=2)
    difference = divergence(usage(net, c_noise[0]), wished).mean()
    torch.testing.assert_close(total - own, 2 * difference)
    assert net.eval().penalty(c_noise, cond).item() == 0


def test_penalty_draws_the_routers_to_the_prior():
    net = seeded(partial(DiffusionPrior, net=NET, weight=1.0)).train()
    c_noise, cond = torch.linspace(-46, 30, 40).view(8, 5), torch.zeros(8, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    before = net.penalty(c_noise, cond).item() - net.net.penalty(c_noise, cond).item()
    for _ in range(60):
        optimizer.zero_grad()
        net.penalty(c_noise, cond).backward()
        optimizer.step()
    after = net.penalty(c_noise, cond).item() - net.net.penalty(c_noise, cond).item()
    assert after < 0.5 * before


def test_prior_leaves_the_network_as_it_is():
    net = seeded(partial(DiffusionPrior, net=NET)).eval()
    torch.nn.init.normal_(net.net.out.weight)
    x, c_noise, cond = torch.randn(2, 5, 2), torch.full((2, 5), 3.0), torch.randn(2, 4)
    expected = net.net(x, c_noise, cond)
    assert torch.equal(net(x, c_noise, cond), expected)
    torch.testing.assert_close(net.at(c_noise[0])(x, cond), expected)


def test_figure_shows_what_is_chosen(tmp_path):
    probabilities = torch.tensor([[[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]])
    assert served(probabilities, top_k=2).tolist() == [[[1, 1, 0], [0, 1, 1]]]
    draw(probabilities, [0.1, 1.0], tmp_path / "experts.png", top_k=2)
    assert (tmp_path / "experts.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    folder = tmp_path_factory.mktemp("experts")
    contract = Contract(
        observation={"state": Field(shape=(2,))}, action=Field(shape=(2,)), control_dt=0.1
    )
    store = EpisodeStore.create(folder / "store.zarr", contract)
    values = np.random.default_rng(0).uniform(-1, 1, (30, 2)).astype(np.float32)
    store.append({name: values for name in contract.fields})
    return store


def prepared(store: EpisodeStore, *settings: str, out: Path = Path()) -> Run:
    given = [f"store.path={store.path}", "batch_size=8", "holdout=0", "threads=1"]
    cfg = compose_config("train", [*given, "device=cpu", "precision=fp32", *settings])
    return prepare(cfg, store, out)


@pytest.fixture(scope="module")
def checkpoint(store, tmp_path_factory) -> Path:
    """An untrained policy with experts."""
    out = tmp_path_factory.mktemp("run") / "run"
    prepared(store, "net=moe_small", "net.n_layers=2", "net.size=16", out=out).save()
    return out


def test_figure_of_a_checkpoint(checkpoint, tmp_path):
    settings = [f"checkpoint={checkpoint}", f"out={tmp_path}", "n_levels=20", "device=cpu"]
    path = experts.run(compose_config("experts", settings))
    assert path.read_bytes().startswith(b"\x89PNG")
    shares = json.loads((tmp_path / "experts.json").read_text())["served"]
    assert [sum(row) for row in shares] == pytest.approx([2, 2])


def test_figure_says_that_the_task_does_not_matter(checkpoint, tmp_path, capsys):
    experts.run(compose_config("experts", [f"checkpoint={checkpoint}", f"out={tmp_path}"]))
    assert "the same in every task" in capsys.readouterr().out
    assert "served_in_task" not in json.loads((tmp_path / "experts.json").read_text())


@pytest.fixture(scope="module")
def told_checkpoint(tmp_path_factory) -> Path:
    """An untrained policy that is told one of three tasks, and whose routers see it."""
    folder = tmp_path_factory.mktemp("told")
    contract = Contract(
        observation={"state": Field(shape=(2,)), TASK: task_field(["lift", "push", "turn"])},
        action=Field(shape=(2,)),
        control_dt=0.1,
    )
    store = EpisodeStore.create(folder / "store.zarr", contract)
    rng = np.random.default_rng(0)
    for task in range(3):
        values = {
            name: rng.uniform(-1, 1, (20, 2)).astype(np.float32) for name in ("state", "action")
        }
        told = np.eye(3, dtype=np.float32)[[task] * 20]
        store.append({**values, TASK: told})
    sizes = ["net=moe_mlp", "net.size=16", "net.n_blocks=2", "net.layers_see_cond=true"]
    prepared(store, *sizes, out=folder / "run").save()
    return folder / "run"


def test_figure_of_routers_that_see_the_task(told_checkpoint, tmp_path, capsys):
    settings = [f"checkpoint={told_checkpoint}", f"out={tmp_path}", "n_levels=20", "device=cpu"]
    path = experts.run(compose_config("experts", settings))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "the mean over 3 tasks" in capsys.readouterr().out
    written = json.loads((tmp_path / "experts.json").read_text())
    assert list(written["served_in_task"]) == ["lift", "push", "turn"]
    shares = np.array(list(written["served_in_task"].values()))
    np.testing.assert_allclose(shares.sum(axis=-1), 2)
    np.testing.assert_allclose(shares.mean(axis=0), written["served"], atol=1e-6)


def test_conditions_differ_in_the_task_alone(told_checkpoint):
    policy = from_checkpoint(load(told_checkpoint)).eval()
    seen = []
    policy.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    tasks, conds = conditions(policy)
    assert tasks == ["lift", "push", "turn"]
    assert conds.shape == (3, 1, policy.encoder.cond_size)
    n_steps = policy.horizons.obs
    assert torch.equal(seen[0][TASK], torch.eye(3)[:, None].expand(-1, n_steps, -1))
    torch.testing.assert_close(seen[0]["state"], torch.zeros(3, n_steps, 2), rtol=0, atol=1e-6)


def test_impossible_figures_are_refused(checkpoint, pillar_checkpoint, tmp_path):
    def run(*settings):
        return experts.run(compose_config("experts", [*settings, f"out={tmp_path}"]))

    with pytest.raises(ValueError, match="n_levels is 1"):
        run(f"checkpoint={checkpoint}", "n_levels=1")
    with pytest.raises(ValueError, match="no levels from 30 to 20"):
        run(f"checkpoint={checkpoint}", "sigma_min=30.0")
    with pytest.raises(ValueError, match="UNet1d has no experts"):
        run(f"checkpoint={pillar_checkpoint}")


def test_bench_counts_the_experts_of_a_token(tmp_path):
    """A bound network does no more than its dense twin; unbound, the routers come on top."""
    size, n_tokens = 16, 5
    settings = ["net.size=16", "net.n_layers=2", "repeats=2", "pred_horizon=4", "n_levels=2"]
    cfg = compose_config("bench_experts", [*settings, f"out={tmp_path}", "device=cpu"])
    rows = bench_experts.run(cfg)["rows"]
    experts, bound, dense, dense_bound = (row["multiply_adds"] for row in rows.values())
    router = 2 * (2 * size**2 + 2 * size * 4)  # Of a token, in two layers.
    embed = 8 * size**2  # Of an action's level.
    assert bound == dense_bound
    assert experts - bound == n_tokens * router + 4 * embed
    assert dense - dense_bound == 4 * embed
    one = rows["experts"]
    assert one["weights"] - one["weights_of_a_token"] == 2 * (
        2 * 3 * size * 2 * size + 2 * size**2 + 2 * size + 2 * size * 4 + 4
    )


@pytest.mark.parametrize("precond", ["eps", "v", "x0"])
def test_a_window_over_other_levels_than_the_trained_is_refused(store, precond):
    settings = ["net=moe_switch_small", "net.net.size=16", "net.net.n_layers=1"]
    prepared(store, *settings)
    with pytest.raises(ValueError, match=r"from -46 to 30, but levels from .* set net\.lowest="):
        prepared(store, *settings, f"precond={precond}")
    prepared(store, *settings, f"precond={precond}", "net.lowest=0", "net.highest=97")
    with pytest.raises(ValueError, match=r"levels from -46 to 44 are trained.*net\.highest=44"):
        prepared(store, *settings, "loss.corruption.density.sigma_max=80")


def test_a_window_of_channels_over_other_levels_than_the_trained_is_refused(store):
    settings = ["net=transformer_routed_small", "net.size=16", "net.n_layers=1"]
    prepared(store, *settings)
    with pytest.raises(ValueError, match=r"from -46 to 30, but .* set net\.channel_mask\.lowest="):
        prepared(store, *settings, "precond=v")


@pytest.mark.parametrize("name", ["repeats", "n_levels", "pred_horizon"])
def test_a_bench_of_nothing_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is 0, it must be at least 1"):
        bench_experts.run(compose_config("bench_experts", [f"{name}=0", f"out={tmp_path}"]))


def test_bench_measures_the_network_under_a_prior(tmp_path):
    """Its twin has the features of the two experts of a token and of the shared one."""
    sizes = ["net=moe_switch_small", "net.net.size=16", "net.net.n_layers=1"]
    few = ["repeats=1", "n_levels=1", "pred_horizon=2", f"out={tmp_path}", "device=cpu"]
    rows = bench_experts.run(compose_config("bench_experts", [*sizes, *few]))["rows"]
    _, bound, _, dense_bound = (row["multiply_adds"] for row in rows.values())
    assert bound == dense_bound


def test_bench_needs_experts(tmp_path):
    with pytest.raises(ValueError, match=r"UNet1d without experts .* net=moe_small"):
        bench_experts.run(compose_config("bench_experts", ["net=unet1d_small", f"out={tmp_path}"]))
