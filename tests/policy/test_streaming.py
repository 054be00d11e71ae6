"""Streaming against sequential sampling, and what it keeps of an outdated plan."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from data.types import Horizons
from policy.diffusion.schedule import karras
from policy.diffusion.step import ancestral, dpmpp_2m
from policy.sampling.carry import UNKNOWN
from policy.sampling.descent import Descent
from policy.sampling.ladder import by_action, by_chunk
from policy.sampling.sequential import Sequential
from policy.sampling.streaming import Streaming
from policy.types import Carry, ChunkSpace

TP, DA, STD, FULL = 8, 2, 0.2, 20.0


def space(action):
    horizons = Horizons(obs=1, pred=TP, action=action)
    return ChunkSpace(horizons, action_size=DA, sigma_min=0.01, sigma_max=FULL)


def descent(solver):
    return Descent(dpmpp_2m if solver == "2m" else partial(ancestral, eta=0.0))


def sequential(space, n_steps=6, solver="ddim"):
    grid = karras(n_steps, sigma_min=0.01, sigma_max=FULL)
    return Sequential(space=space, grid=grid, descent=descent(solver))


def streaming(
    chunks, n_steps=6, solver="ddim", ladder=None, front=1.0, head_solver=None, sigma_min=0.01
):
    """A sampler of the given chunks, or of those of which so many actions are executed."""
    return Streaming(
        space=space(chunks) if isinstance(chunks, int) else chunks,
        first=sequential,
        descent=descent(solver),
        n_steps=n_steps,
        ladder=ladder or partial(by_chunk, front_sigma=front, sigma_max=FULL),
        sigma_min=sigma_min,
        rho=7.0,
        head_solver=head_solver,
    )


def gaussian(x, sigma, cond):
    """The exact denoiser of actions with mean cond and deviation STD."""
    s = sigma[..., None]
    return (STD**2 * x + s**2 * cond[:, None]) / (STD**2 + s**2)


def unknown(n):
    return Carry(torch.zeros(n, TP, DA), torch.full((n, TP), UNKNOWN))


@pytest.mark.parametrize("solver", ["ddim", "2m"])
def test_one_chunk_is_sequential_sampling(solver):
    """All actions are executed, so all of them come in as noise and go out clean."""
    cond = torch.tensor([[0.3], [-0.2]])
    got, carry = streaming(TP, solver=solver, front=FULL)(
        gaussian, cond, unknown(2), torch.Generator().manual_seed(0)
    )
    plain = sequential(space(TP), solver=solver)
    start = plain.start(gaussian, cond, torch.Generator())
    expected, _ = plain(gaussian, cond, start, torch.Generator().manual_seed(0))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    assert (carry.sigma == 0).all()


def test_equal_levels_are_sequential_for_what_is_due():
    """A ladder without a slope: what is due is denoised from full noise, the rest waits there."""
    cond = torch.tensor([[0.3], [-0.2]])
    flat = streaming(2, ladder=lambda horizons: torch.full((TP,), FULL))
    got, carry = flat(gaussian, cond, unknown(2), torch.Generator().manual_seed(0))
    plain = sequential(space(2))
    start = plain.start(gaussian, cond, torch.Generator())
    expected, _ = plain(gaussian, cond, start, torch.Generator().manual_seed(0))
    torch.testing.assert_close(got[:, :2], expected[:, :2], rtol=0, atol=2e-5)
    assert carry.sigma[0].tolist() == [0.0, 0.0, *[FULL] * 6]


def test_a_buffer_comes_down_the_ladder():
    """After each tick and shift the levels are those of the ladder again."""
    sampler = streaming(2, n_steps=3)
    cond, generator = torch.zeros(1, 1), torch.Generator().manual_seed(0)
    carry = sampler.start(gaussian, cond, generator)
    ladder = [FULL ** (i / 3) for i in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert carry.sigma[0].tolist() == pytest.approx(ladder)
    for _ in range(3):
        _, carry = sampler(gaussian, cond, carry, generator)
        assert carry.sigma[0].tolist() == pytest.approx([0, 0, *ladder[:6]])
        carry = sampler.shift(carry, 2)
        assert carry.sigma[0].tolist() == pytest.approx([*ladder[:6], UNKNOWN, UNKNOWN])


def test_levels_never_rise_whatever_was_executed():
    sampler = streaming(2, n_steps=3)
    seen = []

    def looking(x, sigma, cond):
        seen.append(sigma[0])
        return gaussian(x, sigma, cond)

    cond, generator = torch.zeros(1, 1), torch.Generator().manual_seed(0)
    carry = sampler.start(gaussian, cond, generator)
    for n_executed in (2, 0, 1, 5, 8, 2):
        seen.clear()
        _, carry = sampler(looking, cond, carry, generator)
        seen.append(carry.sigma[0])
        assert all((b <= a).all() for a, b in pairwise(seen))
        assert torch.isfinite(carry.x).all()
        carry = sampler.shift(carry, n_executed)


@pytest.mark.parametrize("front", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("noisy_head", [False, True])
def test_what_remains_of_an_outdated_plan(front, noisy_head):
    """An action enters its last tick at the front level and keeps s / sqrt(s^2 + sigma^2)."""
    n, stale = 5000, 0.8
    head_solver = partial(ancestral, eta=1.0) if noisy_head else None
    sampler = streaming(2, n_steps=60, front=front, head_solver=head_solver)
    generator = torch.Generator().manual_seed(0)
    carry = sampler.start(gaussian, torch.full((n, 1), stale), generator)
    # The deviation of the plan beside its mean must be that of the actions: 4 standard errors.
    x, _ = sampler(gaussian, torch.zeros(n, 1), carry, generator)
    kept = STD / math.hypot(STD, front)
    expected = stale * (kept**2 if noisy_head else kept)
    assert x[:, :2].mean().item() == pytest.approx(expected, abs=4 * STD / 141 + 0.03 * stale)


def test_what_is_not_due_yet_is_a_prediction():
    sampler = streaming(2, n_steps=3)
    cond, generator = torch.zeros(50, 1), torch.Generator().manual_seed(0)
    carry = sampler.start(gaussian, cond, generator)
    actions, carry = sampler(gaussian, cond, carry, generator)
    assert carry.x[:, 4:].abs().max() > 3
    assert actions.abs().max() < 1.5


def test_a_multi_step_solver_does_not_take_a_change_of_scene_for_a_slope():
    """The mean jumps from 0 to 1; what is due moves by 1 less what remains, and not beyond."""
    n = 500
    sampler = streaming(2, n_steps=3, solver="2m")
    generator = torch.Generator().manual_seed(0)
    carry = sampler.start(gaussian, torch.zeros(n, 1), generator)
    for _ in range(3):
        _, carry = sampler(gaussian, torch.zeros(n, 1), carry, generator)
        carry = sampler.shift(carry, 2)
    x, _ = sampler(gaussian, torch.ones(n, 1), carry, generator)
    kept = STD / math.hypot(STD, 1.0)
    # Three steps: within 0.1 of the exact flow's answer.
    assert x[:, :2].mean().item() == pytest.approx(1 - kept, abs=0.1)


def test_what_is_executed_during_a_delay_is_a_sample_too():
    """Actions are 1 or -1: a late chunk must not hand out the mean of both."""

    def two_modes(x, sigma, cond):
        s = sigma[..., None]
        return torch.where(s > 0, torch.tanh(x / torch.where(s > 0, s, 1.0) ** 2), x)

    late = ChunkSpace(Horizons(obs=1, pred=TP, action=2), DA, inference_delay=2)
    sampler = streaming(late, n_steps=3)
    cond, generator = torch.zeros(200, 1), torch.Generator().manual_seed(0)
    carry = sampler.start(two_modes, cond, generator)
    for _ in range(4):
        actions, carry = sampler(two_modes, cond, carry, generator)
        assert (actions[:, :4].abs() > 0.9).float().mean() > 0.97
        fixed = actions[:, 2:4]
        carry = sampler.shift(carry, 2)
        assert torch.equal(carry.x[:, :2], fixed)
        assert (carry.sigma[:, :2] == 0).all()


def test_the_end_enters_at_full_noise_whatever_the_ladder_says():
    seen = []

    def looking(x, sigma, cond):
        seen.append(sigma[0])
        return gaussian(x, sigma, cond)

    low = partial(by_chunk, front_sigma=0.5, sigma_max=5.0)
    sampler = streaming(2, n_steps=2, ladder=low)
    cond, generator = torch.zeros(1, 1), torch.Generator().manual_seed(0)
    carry = sampler.shift(sampler.start(gaussian, cond, generator), 2)
    seen.clear()
    sampler(looking, cond, carry, generator)
    assert seen[0][-2:].tolist() == [FULL, FULL]


def test_past_actions_stay_clean():
    later = ChunkSpace(Horizons(obs=1, pred=6, action=2, past=2), DA)
    assert by_chunk(later, front_sigma=0.5, sigma_max=8.0).tolist() == pytest.approx(
        [0, 0, 0.5, 0.5, 8, 8]
    )
    sampler = streaming(later, n_steps=2)
    cond, generator = torch.zeros(1, 1), torch.Generator().manual_seed(0)
    carry = sampler.start(gaussian, cond, generator)
    assert (carry.sigma[:, :2] == UNKNOWN).all(), "a first chunk invents its past"
    for call in range(2):
        before = carry.x[:, :2]
        actions, carry = sampler(gaussian, cond, carry, generator)
        assert torch.equal(actions[:, :2], before) == (call > 0)
        assert carry.sigma[0].tolist() == pytest.approx([0, 0, 0, 0, 1, 1])
        carry = sampler.shift(carry, 2)
        assert torch.equal(carry.x[:, :2], actions[:, 2:4])


def test_ladders():
    odd = ChunkSpace(Horizons(obs=1, pred=7, action=3), DA)
    chunks = by_chunk(odd, front_sigma=0.5, sigma_max=8.0)
    assert chunks.tolist() == pytest.approx([0.5, 0.5, 0.5, 8, 8, 8, 8])
    single = by_action(odd, front_sigma=1.0, sigma_max=64.0)
    assert single.tolist() == pytest.approx([1, 2, 4, 8, 16, 32, 64])


def test_actions_of_one_tick_have_one_level():
    """7 actions, 4 of them a tick: the front's level would be dropped."""
    short = ChunkSpace(Horizons(obs=1, pred=TP, action=4, past=1), DA)
    with pytest.raises(ValueError, match="7 actions are not decided and 4 are executed in a tick"):
        by_chunk(short, front_sigma=1.0, sigma_max=20.0)
    assert by_chunk(short, front_sigma=20.0, sigma_max=20.0).tolist() == [0, *[20] * 7]


def test_gradients_of_the_levels_are_finite_at_zero():
    sampler = streaming(2, n_steps=3)
    carry = sampler.start(gaussian, torch.zeros(1, 1), torch.Generator().manual_seed(0))
    sigma = carry.sigma.clone()
    sigma[:, 0] = 0
    sigma.requires_grad_()
    x, _ = sampler(
        gaussian,
        torch.zeros(1, 1),
        carry.replace(sigma=sigma),
        torch.Generator().manual_seed(0),
    )
    (gradient,) = torch.autograd.grad(x.sum(), sigma)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("ladder", "message"),
    [
        (lambda h: torch.tensor([2.0, 1.0] + [3.0] * 6), "must not fall"),
        (lambda h: torch.zeros(TP), "must be positive"),
        (lambda h: torch.ones(3), "the ladder has 3 levels, a chunk has 8 actions"),
        (lambda h: torch.tensor([1.0] * 7 + [30.0]), "ends at 30, full noise is 20"),
        (partial(by_action, front_sigma=30.0, sigma_max=20.0), "front_sigma is 30"),
    ],
)
def test_impossible_ladder_is_refused(ladder, message):
    with pytest.raises(ValueError, match=message):
        streaming(2, ladder=ladder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_steps": 0}, "n_steps is 0"),
        ({"sigma_min": 0.005}, r"sigma 0\.005, .* trained at 0\.01 to 20: give sigma_min=0\.01"),
        ({"front": 0.005}, r"the ladder starts at sigma 0\.005, the denoiser was trained at"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        streaming(2, **settings)
