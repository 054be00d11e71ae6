"""What every sampler of configs/sampler does; a new one is tested by its YAML alone."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from data.types import Horizons
from policy.diffusion.schedule import karras
from policy.entry import compose_config
from policy.types import ChunkSpace
from policy.witness import Witness

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "sampler"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TP, DA = 16, 2
MEAN, STD = 0.2, 0.3
SPACE = ChunkSpace(
    Horizons(obs=1, pred=TP, action=8),
    action_size=DA,
    discrete=(1,),
    sigma_min=0.01,
    sigma_max=20.0,
    grids={4: karras(4, sigma_min=0.01, sigma_max=20.0)},
    anchors=torch.tensor([MEAN - STD, MEAN, MEAN + STD])[:, None, None].expand(3, TP, DA),
)


@cache
def configured(name):
    return compose_config("evaluate", [f"sampler={name}", "env=pillar", "checkpoint=none"]).sampler


def built(name, space=SPACE):
    return instantiate(configured(name))(space=space)


def gaussian(x, sigma, cond):
    """The exact denoiser of actions that are normal with MEAN and STD."""
    s = sigma[..., None]
    return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)


def seeded(n, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def run(sampler, n, generator, denoiser=gaussian, n_calls=1, n_executed=8):
    """Chunks of consecutive calls."""
    cond = torch.zeros(n, 1)
    carry, chunks = sampler.start(denoiser, cond, generator), []
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
        assert len(x) == len(sigma) == len(cond)
        return gaussian(x, sigma, cond)

    sampler = built(name)
    run(sampler, 2, seeded(2), counting, n_calls=3)
    assert len(calls) == sampler.start_nfe + 3 * sampler.nfe
    assert all(sigma.shape[1] == TP and (sigma >= 0).all() for sigma in calls)
    assert all(len(sigma) % 2 == 0 for sigma in calls)


@pytest.mark.parametrize("name", NAMES)
def test_levels_that_are_known_beforehand_are_those_of_the_calls(name):
    calls, sampler = [], built(name)
    if not hasattr(sampler, "levels"):
        pytest.skip("its levels are not the same in every call")

    def recording(x, sigma, cond):
        calls.append(sigma)
        return gaussian(x, sigma, cond)

    run(sampler, 2, seeded(2), recording, n_calls=2)
    assert sampler.start_nfe == 0
    assert len(calls) == 2 * len(sampler.levels)
    for sigma, level in zip(calls, 2 * sampler.levels, strict=True):
        torch.testing.assert_close(sigma, torch.full((2, TP), level), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_a_gaussian_have_its_mean_and_about_its_deviation(name):
    """Few steps narrow the distribution, one step most of all; a factor of 3 would be too much."""
    first, *_, last = run(built(name), 300, torch.Generator().manual_seed(0), n_calls=3)
    for actions in (first[:, :8], last[:, :8]):
        assert actions.mean().item() == pytest.approx(MEAN, abs=0.05)
        assert STD / 3 < actions.std().item() < STD * 2


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
        # Kernels round differently for another batch; an agent always has the same (test_play).
        torch.testing.assert_close(many[1:2], one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_carry_has_one_row_per_stream(name):
    sampler = built(name)
    start = sampler.start(gaussian, torch.zeros(3, 1), seeded(3))
    _, carry = sampler(gaussian, torch.zeros(3, 1), start, seeded(3))
    for one in (start, carry, sampler.shift(carry, 4)):
        assert one.x.shape == (3, TP, DA)
        assert one.sigma.shape == (3, TP)
        assert not one.x.isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_carry_of_another_batch_is_refused(name):
    sampler = built(name)
    carry = sampler.start(gaussian, torch.zeros(3, 1), seeded(3))
    with pytest.raises(ValueError, match=r"the carry has shape \(3, 16, 2\)"):
        sampler(gaussian, torch.zeros(2, 1), carry, seeded(2))


@pytest.mark.parametrize("name", NAMES)
def test_carry_with_other_levels_is_refused(name):
    sampler = built(name)
    carry = sampler.start(gaussian, torch.zeros(2, 1), seeded(2))
    with pytest.raises(ValueError, match=r"levels have shape \(2, 1\), its chunk needs \(2, 16\)"):
        sampler(gaussian, torch.zeros(2, 1), carry.replace(sigma=carry.sigma[:, :1]), seeded(2))


@pytest.mark.parametrize("name", NAMES)
def test_start_level_that_was_not_trained_is_refused(name):
    narrow = ChunkSpace(
        SPACE.horizons, DA, sigma_min=0.01, sigma_max=0.5, grids=SPACE.grids, anchors=SPACE.anchors
    )
    with pytest.raises(Exception, match=r"the denoiser was trained at 0\.01 to 0\.5"):
        built(name, narrow)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_reads_no_number_back_from_the_device(name):
    """Tensors without values: whatever asks for one, to branch on it or to print it, raises."""
    sampler = built(name)
    generator = torch.Generator()
    watched = Witness(gaussian, rows=2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        cond = torch.zeros(2, 1)
        carry = sampler.start(watched, cond, generator)
        for _ in range(2):
            _, carry = sampler(watched, cond, carry, generator)
            carry = sampler.shift(carry, 8)
        with pytest.raises(DataDependentOutputException):  # the control: this mode does raise
            bool((mode.from_tensor(torch.zeros(1)) > 0).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_call_does_not_wait_for_the_device(name):
    anchors = SPACE.anchors
    assert anchors is not None
    sampler = built(name, replace(SPACE, anchors=anchors.cuda()))
    generator = torch.Generator("cuda").manual_seed(0)
    watched, cond = Witness(gaussian, rows=2), torch.zeros(2, 1, device="cuda")
    carry = sampler.start(watched, cond, generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            _, carry = sampler(watched, cond, carry, generator)
            carry = sampler.shift(carry, 8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
