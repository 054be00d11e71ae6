"""Real-time iteration against closed forms of a Gaussian and of a gripper."""

import math
from functools import partial
from statistics import NormalDist

import pytest
import torch

from data.types import Horizons
from policy.diffusion.schedule import karras
from policy.diffusion.step import ancestral
from policy.guidance.rtc import RealTimeChunking
from policy.sampling.carry import UNKNOWN
from policy.sampling.descent import Descent
from policy.sampling.ladder import by_action, flat
from policy.sampling.rti import RTI
from policy.sampling.sequential import Sequential
from policy.types import Carry, ChunkSpace

TP, DA, STD = 4, 2, 0.2
SPACE = ChunkSpace(Horizons(obs=1, pred=TP, action=1), action_size=DA)
FULL = 20.0


def descent(eta=0.0):
    return Descent(partial(ancestral, eta=eta))


def first(space=SPACE, n_steps=8):
    grid = karras(n_steps, sigma_min=0.01, sigma_max=FULL)
    return Sequential(space=space, grid=grid, descent=descent())


def rti(restart_sigma, space=SPACE, eta=0.0, n_steps=100, **settings):
    return RTI(
        space=space,
        first=first,
        descent=descent(eta),
        n_steps=n_steps,
        restart=partial(flat, sigma=restart_sigma),
        sigma_min=0.001,
        rho=7.0,
        **settings,
    )


def gaussian(x, sigma, cond):
    """The exact denoiser of actions with mean cond and deviation STD."""
    s = sigma[..., None]
    return (STD**2 * x + s**2 * cond[:, None]) / (STD**2 + s**2)


def known(value, batch, space=SPACE):
    x = torch.full((batch, *space.shape), value)
    return Carry(x=x, sigma=torch.zeros(batch, space.horizons.pred))


@pytest.mark.parametrize("restart_sigma", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_remains_of_an_outdated_plan(restart_sigma, eta):
    """The flow scales deviations by s / sqrt(s^2 + sigma^2), DDPM by the square of that."""
    n, stale = 5000, 0.8
    sampler = rti(restart_sigma, eta=eta)
    x, _ = sampler(gaussian, torch.zeros(n, 1), known(stale, n), torch.Generator().manual_seed(0))
    kept = STD / math.hypot(STD, restart_sigma)
    expected = stale * (kept**2 if eta else kept)
    # Four standard errors of the mean of 40,000 values, and 2 % for finite steps.
    assert x.mean().item() == pytest.approx(expected, abs=4 * STD / 200 + 0.02 * stale)


def test_restart_at_full_noise_forgets_like_sequential_sampling():
    """The same noise in: the shifted chunk is all that differs, by STD / 20 of it."""
    cond, n = torch.zeros(6, 1), 6
    sampler = RTI(
        space=SPACE,
        first=first,
        descent=descent(),
        n_steps=8,
        restart=partial(flat, sigma=FULL),
        sigma_min=0.01,
        rho=7.0,
    )
    unknown = Carry(torch.zeros(n, TP, DA), torch.full((n, TP), UNKNOWN))
    expected, _ = first()(gaussian, cond, unknown, torch.Generator().manual_seed(3))
    for carry in (unknown, known(0.0, n)):
        got, _ = sampler(gaussian, cond, carry, torch.Generator().manual_seed(3))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    remembering, _ = sampler(gaussian, cond, known(0.5, n), torch.Generator().manual_seed(3))
    torch.testing.assert_close(remembering, expected, rtol=0, atol=0.5 * STD / FULL * 2)


def test_carry_moves_and_its_end_is_unknown():
    sampler = rti(1.0)
    x = torch.arange(8.0).reshape(1, TP, DA)
    carry = sampler.shift(Carry(x, torch.zeros(1, TP)), 3)
    assert torch.equal(carry.x[0, 0], x[0, 3])
    assert carry.sigma[0].tolist() == [0.0, UNKNOWN, UNKNOWN, UNKNOWN]
    with pytest.raises(ValueError, match="5 actions were executed, a chunk has 4"):
        sampler.shift(carry, 5)


def test_unknown_end_starts_from_full_noise():
    seen = []

    def looking(x, sigma, cond):
        seen.append(sigma)
        return gaussian(x, sigma, cond)

    sampler = rti(1.0, n_steps=3)
    carry = sampler.shift(known(0.3, 2), 1)
    sampler(looking, torch.zeros(2, 1), carry, torch.Generator().manual_seed(0))
    assert seen[0][0].tolist() == [1.0, 1.0, 1.0, FULL]
    assert seen[-1][0].tolist() == pytest.approx([0.001] * 4)


def test_restart_levels_may_rise_along_the_chunk():
    seen = []

    def looking(x, sigma, cond):
        seen.append(sigma)
        return gaussian(x, sigma, cond)

    sampler = RTI(
        space=SPACE,
        first=first,
        descent=descent(),
        n_steps=1,
        restart=partial(by_action, front_sigma=0.1, sigma_max=6.4),
        sigma_min=0.001,
        rho=7.0,
    )
    sampler(looking, torch.zeros(1, 1), known(0.3, 1), torch.Generator().manual_seed(0))
    assert seen[0][0].tolist() == pytest.approx([0.1, 0.4, 1.6, 6.4])


def test_committed_actions_come_back_as_they_were():
    sampler = rti(1.0, n_committed=2, n_steps=3)
    x, _ = sampler(gaussian, torch.zeros(2, 1), known(0.7, 2), torch.Generator().manual_seed(0))
    assert (x[:, :2] == 0.7).all()
    assert (x[:, 2:] != 0.7).all()


def test_past_actions_are_facts():
    """Index 2 is now: what was executed before conditions, and comes back as it was."""
    space = ChunkSpace(Horizons(obs=1, pred=TP, action=1, past=2), action_size=DA)
    sampler = rti(1.0, space=space, n_steps=3)
    carry = sampler.shift(known(0.7, 2), 1)
    x, _ = sampler(gaussian, torch.zeros(2, 1), carry, torch.Generator().manual_seed(0))
    assert (x[:, :2] == 0.7).all()
    assert (x[:, 2:] != 0.7).all()


def gripper(x, sigma, cond):
    """The exact denoiser of an action that is 1 with probability 0.99 and otherwise -1."""
    s = sigma[..., None]
    safe = torch.where(s > 0, s, 1.0)
    return torch.where(s > 0, torch.tanh(x / safe**2 + math.log(99) / 2), x)


def shares_open(redraw, n=1000, closed=-1.0):
    """Share of grippers that end open, the old plan being closed."""
    space = ChunkSpace(SPACE.horizons, DA, discrete=(0, 1))
    sampler = rti(0.3, space=space, redraw_discrete=redraw)
    x, _ = sampler(
        gripper, torch.zeros(n, 1), known(closed, n, space), torch.Generator().manual_seed(0)
    )
    return (x > 0).float().mean().item()


def test_a_gripper_changes_its_mind():
    """An observation that says open with 0.99 is followed; a kept plan hears nothing of it."""
    # Kept: -1 + 0.3 n must pass the 1 % quantile of noisy actions, about 0.33: four deviations.
    assert shares_open(False) < 0.01
    # Redrawn: the guess is tanh(logit / 2) = 0.98, which 0.3 n brings below 0.33 in 1.5 %.
    normal = NormalDist()
    border = 0.33
    below = 0.01 * normal.cdf((border + 1) / 0.3) + 0.99 * normal.cdf((border - 1) / 0.3)
    assert below == pytest.approx(0.0226, abs=0.002)
    assert shares_open(True) > 0.95


def test_redrawing_costs_one_call_and_only_where_something_is_discrete():
    discrete = ChunkSpace(SPACE.horizons, DA, discrete=(1,))
    assert rti(1.0, n_steps=3).nfe == 3
    assert rti(1.0, n_steps=3, space=discrete).nfe == 4
    assert rti(1.0, n_steps=3, space=discrete, redraw_discrete=False).nfe == 3


def test_guidance_leaves_a_gripper_alone():
    space = ChunkSpace(SPACE.horizons, DA, discrete=(1,))
    sampler = rti(FULL, space=space, n_steps=8, guidance=guided())
    n = 200
    x, _ = sampler(
        gripper, torch.zeros(n, 1), known(-1.0, n, space), torch.Generator().manual_seed(0)
    )
    assert (x[:, :3, 0] < -0.9).all(), "guided to the last chunk"
    assert (x[..., 1] > 0.9).float().mean() > 0.95


def test_a_first_chunk_invents_its_past():
    space = ChunkSpace(Horizons(obs=1, pred=TP, action=1, past=2), action_size=DA)
    carry = rti(1.0, space=space).start(gaussian, torch.zeros(2, 1), torch.Generator())
    assert (carry.sigma[:, :2] == UNKNOWN).all()
    assert (carry.sigma[:, 2:] == 0).all()


def test_what_is_executed_during_a_delay_is_kept():
    space = ChunkSpace(Horizons(obs=1, pred=TP, action=1), action_size=DA, inference_delay=1)
    x, _ = rti(1.0, space=space, n_steps=3)(
        gaussian, torch.zeros(2, 1), known(0.7, 2, space), torch.Generator().manual_seed(0)
    )
    assert (x[:, :1] == 0.7).all()
    assert (x[:, 1:] != 0.7).all()


def guided(**settings):
    values = {"delay": 4, "strength": 1.0, "max_weight": 5.0, "sigma_data": 0.5, "blend": True}
    return RealTimeChunking(**{**values, **settings})


def test_no_guidance_weight_is_no_guidance():
    carry, cond = known(0.7, 2), torch.zeros(2, 1)
    free, _ = rti(1.0, n_steps=3)(gaussian, cond, carry, torch.Generator().manual_seed(0))
    for blend in (True, False):
        sampler = rti(1.0, n_steps=3, guidance=guided(strength=0.0, blend=blend))
        x, _ = sampler(gaussian, cond, carry, torch.Generator().manual_seed(0))
        torch.testing.assert_close(x, free)


def test_full_blend_is_the_last_chunk():
    sampler = rti(FULL, n_steps=3, guidance=guided())
    x, _ = sampler(gaussian, torch.zeros(2, 1), known(0.7, 2), torch.Generator().manual_seed(0))
    torch.testing.assert_close(x, torch.full_like(x, 0.7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restart_sigma": 30.0}, r"restart levels are 30 to 30, .* full noise \(20\)"),
        ({"restart_sigma": 0.0001}, r"restart levels are 0\.0001"),
        ({"restart_sigma": 1.0, "n_committed": 4}, "n_committed is 4, 3 actions"),
        ({"restart_sigma": 1.0, "n_steps": 0}, "n_steps is 0"),
        (
            {"restart_sigma": 1.0, "space": ChunkSpace(Horizons(1, TP, TP), DA)},
            "nothing would be known",
        ),
        (
            {"restart_sigma": 0.005, "space": ChunkSpace(Horizons(1, TP, 1), DA, sigma_min=0.01)},
            r"the last level before 0 is sigma 0\.001, .* give sigma_min=0\.01",
        ),
        ({"restart_sigma": 1.0, "n_committed": 1.5}, r"n_committed is 1\.5, .* whole number"),
        ({"restart_sigma": 1.0, "n_committed": math.nan}, "n_committed is nan"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        rti(**settings)
