"""What every sampler of configs/sampler does; a new one is tested by its YAML alone."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "sampler"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TP, DA = 16, 2
MEAN, STD = 0.2, 0.3


def built(name):
    return instantiate(OmegaConf.load(CONFIGS / f"{name}.yaml"))(pred_horizon=TP, action_size=DA)


def gaussian(x, sigma, cond):
    """The exact denoiser of actions that are normal with MEAN and STD."""
    s = sigma[..., None]
    return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)


def seeded(n, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def run(sampler, n, generator, denoiser=gaussian, n_calls=1, n_executed=8):
    """Chunks of consecutive calls."""
    cond, carry, chunks = torch.zeros(n, 1), sampler.start(n, generator), []
    for _ in range(n_calls):
        actions, carry = sampler(denoiser, cond, carry, generator)
        carry = sampler.shift(carry, n_executed)
        chunks.append(actions)
    return chunks


def test_there_are_samplers():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_nfe_is_true_in_every_call(name):
    calls = []

    def counting(x, sigma, cond):
        calls.append(sigma)
        return gaussian(x, sigma, cond)

    sampler = built(name)
    run(sampler, 2, seeded(2), counting, n_calls=3)
    assert len(calls) == 3 * sampler.nfe
    assert all(sigma.shape == (2, TP) and (sigma >= 0).all() for sigma in calls)


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_a_gaussian_have_its_mean_and_about_its_deviation(name):
    """Few steps narrow the distribution; a factor of two either way is a broken sampler."""
    first, *_, last = run(built(name), 300, torch.Generator().manual_seed(0), n_calls=3)
    for actions in (first, last):
        assert actions.mean().item() == pytest.approx(MEAN, abs=0.05)
        assert STD / 2 < actions.std().item() < STD * 2


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_function_of_the_seed_and_moves_on(name):
    once = run(built(name), 2, seeded(2), n_calls=2)
    again = run(built(name), 2, seeded(2), n_calls=2)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once[0], run(built(name), 2, seeded(2, first=9))[0])


@pytest.mark.parametrize("name", NAMES)
def test_stream_does_not_depend_on_its_neighbours(name):
    together = run(built(name), 3, seeded(3), n_calls=2)
    alone = run(built(name), 1, seeded(1, first=1), n_calls=2)
    for many, one in zip(together, alone, strict=True):
        assert torch.equal(many[1:2], one)


@pytest.mark.parametrize("name", NAMES)
def test_carry_has_one_row_per_stream(name):
    sampler = built(name)
    start = sampler.start(3, seeded(3))
    _, carry = sampler(gaussian, torch.zeros(3, 1), start, seeded(3))
    for one in (start, carry, sampler.shift(carry, 4)):
        assert one.x.shape == (3, TP, DA)
        assert one.sigma.shape == (3, TP)
