"""The peer: the network of the paper with our weights, and the library's loop."""

import sys
from functools import partial

import numpy as np
import pytest
import torch

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.benches.peer import (
    Peer,
    PublishedUNet,
    make_scheduler,
    sample,
    training_step,
)
from policy.benches.stage import fill_zeros
from policy.diffusion.precond import Eps
from policy.diffusion.schedule import cosine_vp_sigmas, explicit
from policy.diffusion.step import ancestral
from policy.model import DiffusionPolicy
from policy.nets.encoders import StateEncoder
from policy.nets.mlp import ResidualMLP
from policy.nets.unet1d import UNet1d
from policy.sampling.descent import Descent
from policy.sampling.sequential import Sequential
from policy.types import ChunkSpace

pytest.importorskip("diffusers", reason="a development dependency")
HORIZONS = Horizons(obs=2, pred=8, action=4)
CONTRACT = Contract(
    observation={"state": Field(shape=(3,))}, action=Field(shape=(2,)), control_dt=0.1
)


def unet(**settings):
    net = UNet1d(
        action_size=2,
        cond_size=6,
        pred_horizon=8,
        channels=(8, 16),
        noise_embed_size=8,
        **settings,
    )
    fill_zeros(net, seed=0)
    return net.eval().requires_grad_(False)


def policy_of(net):
    rng = np.random.default_rng(0)
    arrays = {k: rng.uniform(-3, 5, (50, *f.shape)) for k, f in CONTRACT.fields.items()}
    encoder = StateEncoder(feature_shapes={"state": (3,)}, obs_horizon=2)
    normalizer = Normalizer.fit(CONTRACT, arrays)
    policy = DiffusionPolicy(encoder, net, Eps(), normalizer, CONTRACT, HORIZONS)
    return policy.eval().requires_grad_(False)


@pytest.mark.parametrize("activation", ["silu", "mish"])
def test_the_published_network_is_ours_at_one_level(activation):
    torch.manual_seed(0)
    net = unet(activation=activation)
    x, k, cond = torch.randn(3, 8, 2), torch.tensor([0, 17, 99]), torch.randn(3, 6)
    ours = net(x, k[:, None].expand(3, 8).float(), cond)
    assert ours.std() > 0.001
    torch.testing.assert_close(PublishedUNet(net)(x, k, cond), ours, rtol=0, atol=1e-5)  # Rounding.


def eps_of(x_vp, k):
    """The noise in a variance-preserving chunk of Gaussian actions of deviation 1/2."""
    abar = (1 / (1 + cosine_vp_sigmas()[k] ** 2))[:, None, None]
    x0_hat = abar.sqrt() * x_vp / 4 / (abar / 4 + 1 - abar)
    return (x_vp - abar.sqrt() * x0_hat) / (1 - abar).sqrt()


@pytest.mark.parametrize("calls", [5, 10])
def test_the_loop_is_our_ddim_over_the_same_levels(calls):
    scheduler = make_scheduler()
    scheduler.register_to_config(clip_sample=False)
    seen = []

    def model(x, k, cond):
        seen.append(int(k[0]))
        return eps_of(x, k)

    x_vp = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sample(model, scheduler, x_vp, torch.zeros(4, 6), calls=calls)
    assert len(seen) == calls

    sigmas = cosine_vp_sigmas()[seen]
    sampler = Sequential(
        space=ChunkSpace(HORIZONS, 2),
        grid=explicit([*sigmas.tolist(), 0]),
        descent=Descent(solver=partial(ancestral, eta=0.0), clip=None),
    )

    def denoiser(x, sigma, cond):  # E[x0 | x] of the same Gaussian
        return x / 4 / (1 / 4 + sigma[..., None] ** 2)

    start = x_vp * (1 + sigmas[0] ** 2).sqrt()
    levels = [start.new_full((4, 8), float(sigma)) for sigma in sampler.sigmas]
    ours, _ = sampler.descent(denoiser, torch.zeros(4, 6), start, levels, noise=lambda: start)
    # The library keeps its schedule in float32.
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)


def test_a_chunk_is_in_physical_units_and_has_all_actions():
    policy = policy_of(unet())
    peer = Peer(policy, device=torch.device("cpu"))
    observation = {"state": np.ones((1, 2, 3), np.float32)}
    torch.manual_seed(0)
    chunk = peer.chunk(observation, calls=3)
    assert chunk.shape == (1, 8, 2)
    torch.manual_seed(0)
    x = torch.randn(1, 8, 2)
    cond = policy.encode({"state": torch.ones(1, 2, 3)})
    with torch.no_grad():
        x0 = sample(peer.net, make_scheduler(), x, cond, calls=3)
    np.testing.assert_allclose(chunk, policy.actions(x0).numpy(), rtol=1e-5)
    # Chunks are clipped to the range of the demonstrations.
    assert chunk.min() > -3.01
    assert chunk.max() < 5.01
    assert np.abs(chunk).max() > 1


def test_another_network_has_no_peer():
    net = ResidualMLP(action_size=2, cond_size=6, pred_horizon=8)
    with pytest.raises(ValueError, match="ResidualMLP: it has no peer"):
        Peer(policy_of(net), device=torch.device("cpu"))


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddim", None)
    with pytest.raises(ImportError, match=r"cadence\[dev\]"):
        make_scheduler()


def test_a_training_step_learns_to_predict_the_noise():
    torch.manual_seed(0)
    net = UNet1d(action_size=2, cond_size=6, pred_horizon=8, channels=(8, 16), noise_embed_size=8)
    published = PublishedUNet(net).train()
    optimizer = torch.optim.AdamW(published.parameters(), lr=3e-3)
    step = training_step(published, optimizer, make_scheduler(), bf16=False)
    x0, cond = torch.zeros(256, 8, 2), torch.zeros(256, 6)
    losses = [float(step(x0, cond)) for _ in range(40)]
    # The untrained network predicts 0, and the noise has variance 1: mean of 4096 squares.
    assert losses[0] == pytest.approx(1, abs=0.1)
    # All data are 0, so that the noise can be told from what is seen at every level.
    assert losses[-1] < 0.7
    grads = [weight.grad for weight in published.films.parameters()]
    assert all(grad is not None and grad.any() for grad in grads)
