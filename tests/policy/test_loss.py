"""The loss on predictions whose error is known."""

import pytest
import torch

from policy.diffusion.loss import DenoisingLoss
from policy.diffusion.precond import EDM, X0

NO_PAD = torch.zeros(4, 8, dtype=torch.bool)
COND = torch.zeros(4, 1)


def chunks():
    return torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(1))


def fixed(*levels):
    """A corruption with given levels for the first actions, and the last one for the others."""
    row = torch.tensor([*levels, *[levels[-1]] * (8 - len(levels))])
    return lambda batch, pred_horizon, generator: row.expand(batch, pred_horizon)


def loss_of(denoise, *, corruption, preconditioning, is_pad=NO_PAD, max_weight=100.0, count=True):
    loss = DenoisingLoss(corruption, max_weight, count)
    generator = torch.Generator().manual_seed(0)
    return loss(
        denoise,
        chunks(),
        COND,
        is_pad=is_pad,
        preconditioning=preconditioning,
        generator=generator,
    ).item()


def off_by(error):
    """A denoiser whose prediction is `error` [8] too high at each action."""
    return lambda x, sigma, cond: chunks() + torch.as_tensor(error)[:, None]


def test_perfect_denoiser_has_no_loss():
    perfect = off_by([0.0] * 8)
    assert loss_of(perfect, corruption=fixed(0.5), preconditioning=EDM()) == 0


def test_noisy_chunk_is_the_chunk_plus_sigma_times_unit_noise():
    seen = {}

    def denoise(x, sigma, cond):
        seen.update(x=x, sigma=sigma)
        return x

    many = torch.zeros(500, 8, 2)
    DenoisingLoss(fixed(0.0, 3.0), 100.0, True)(
        denoise,
        many,
        torch.zeros(500, 1),
        is_pad=torch.zeros(500, 8, dtype=torch.bool),
        preconditioning=X0(),
        generator=torch.Generator().manual_seed(0),
    )
    assert (seen["x"][:, 0] == 0).all()
    assert seen["sigma"].tolist()[0] == [0.0] + [3.0] * 7
    # 7000 draws: within four standard errors.
    assert seen["x"][:, 1:].std().item() == pytest.approx(3, abs=4 * 3 / (2 * 7000) ** 0.5)


def test_weight_is_the_parameterisations_up_to_the_cap():
    denoise = off_by([0.5] * 8)
    # 1 / 0.5^2 + 1 / 0.5^2 = 8.
    assert loss_of(denoise, corruption=fixed(0.5), preconditioning=EDM()) == pytest.approx(8 * 0.25)
    # 1 / 0.01^2 + 4 is capped.
    assert loss_of(denoise, corruption=fixed(0.01), preconditioning=EDM()) == pytest.approx(25)
    assert loss_of(denoise, corruption=fixed(0.01), preconditioning=X0()) == pytest.approx(0.25)


def test_clean_actions_are_not_counted():
    denoise = off_by([9.0, 9.0, *[1.0] * 6])
    loss = loss_of(denoise, corruption=fixed(0.0, 0.0, 1.0), preconditioning=X0())
    assert loss == pytest.approx(1.0)


def test_padding_is_counted_only_if_wanted():
    denoise = off_by([1.0] * 4 + [3.0] * 4)
    is_pad = torch.arange(8).expand(4, 8) >= 4
    settings = {"corruption": fixed(1.0), "preconditioning": X0(), "is_pad": is_pad}
    assert loss_of(denoise, **settings) == pytest.approx((1 + 9) / 2)
    assert loss_of(denoise, **settings, count=False) == pytest.approx(1)


def test_loss_without_a_counted_action_is_zero_not_nan():
    is_pad = torch.ones(4, 8, dtype=torch.bool)
    settings = {"corruption": fixed(1.0), "preconditioning": X0(), "is_pad": is_pad}
    assert loss_of(off_by([1.0] * 8), **settings, count=False) == 0
