"""The loss on predictions whose error is known, and what every configured loss must satisfy."""

from functools import cache

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from policy.build import TRAINING_MODULES, check_targets, trained_levels
from policy.diffusion.loss import DenoisingLoss
from policy.diffusion.precond import EDM, X0, Eps, V
from policy.diffusion.weight import MinSNR
from policy.entry import CONFIGS, compose_config, plain

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
    return loss_by(loss, denoise, preconditioning=preconditioning, is_pad=is_pad)


def loss_by(loss, denoise, *, preconditioning, is_pad=NO_PAD):
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


def test_weight_may_be_another_up_to_the_same_cap():
    def loss_at(sigma, *, gamma):
        loss = DenoisingLoss(fixed(sigma), 100.0, True, MinSNR(gamma))
        return loss_by(loss, off_by([0.5] * 8), preconditioning=EDM())

    assert loss_at(2.0, gamma=5.0) == pytest.approx(0.25 * 0.25)
    assert loss_at(0.01, gamma=5.0) == pytest.approx(5 * 0.25)
    assert loss_at(0.01, gamma=1e3) == pytest.approx(100 * 0.25)


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


CONFIGURED = pytest.mark.parametrize(
    "name", sorted(path.stem for path in (CONFIGS / "loss").glob("*.yaml"))
)
PRECONDITIONINGS = pytest.mark.parametrize("preconditioning", [EDM(), Eps(), V(), X0()], ids=str)
# Of which the first two lie in the past and are known, so clean, in half of the samples.
N, TP = 200, 8
MANY = torch.randn(N, TP, 2, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)


@cache
def configured(name):
    return compose_config("train", [f"loss={name}", "horizons.past=2"])


def loss_on_many(name, denoise, preconditioning):
    return instantiate(configured(name).loss)(
        denoise,
        MANY,
        torch.zeros(N, 1),
        is_pad=torch.zeros(N, TP, dtype=torch.bool),
        preconditioning=preconditioning,
        generator=torch.Generator().manual_seed(0),
    )


@CONFIGURED
@PRECONDITIONINGS
def test_a_configured_loss_has_a_finite_gradient(name, preconditioning):
    scale = torch.tensor(0.1, requires_grad=True)

    def denoise(x, sigma, cond):
        c = preconditioning(sigma)
        raw = scale * torch.tanh(c.c_in[..., None] * x)
        return c.c_skip[..., None] * x + c.c_out[..., None] * raw

    loss = loss_on_many(name, denoise, preconditioning)
    loss.backward()
    assert loss > 0
    assert scale.grad is not None
    assert scale.grad.isfinite()
    assert scale.grad != 0


@CONFIGURED
@PRECONDITIONINGS
def test_a_perfect_denoiser_has_no_configured_loss(name, preconditioning):
    assert loss_on_many(name, lambda x, sigma, cond: MANY, preconditioning) == 0


@CONFIGURED
@PRECONDITIONINGS
def test_a_configured_loss_ignores_clean_actions(name, preconditioning):
    seen = {}

    def wrong_where_clean(x, sigma, cond):
        is_clean = seen["is_clean"] = sigma == 0
        return MANY + 9.0 * is_clean[..., None]

    assert loss_on_many(name, wrong_where_clean, preconditioning) == 0
    assert N / 4 < seen["is_clean"][:, :2].all(dim=1).sum() < N


@CONFIGURED
def test_levels_of_a_configured_loss_lie_within_its_range(name):
    cfg = configured(name)
    sigma_min, sigma_max = trained_levels(plain(cfg))
    assert 0 < sigma_min < sigma_max < float("inf")
    generator = torch.Generator().manual_seed(0)
    sigma = instantiate(cfg.loss).corruption(4000, TP, generator)
    noisy = sigma[sigma > 0]
    # Rounded to float32.
    assert noisy.min() >= sigma_min * (1 - 1e-5)
    assert noisy.max() <= sigma_max * (1 + 1e-5)


@CONFIGURED
def test_a_configured_loss_may_be_built_again_by_resume(name):
    check_targets(configured(name).loss, TRAINING_MODULES)


def test_a_loss_saved_before_there_were_weights_is_built_as_it_was():
    # As the checkpoint of such a run names it.
    saved = {
        "_target_": "policy.diffusion.loss.DenoisingLoss",
        "max_weight": 100.0,
        "count_padding": True,
        "corruption": {
            "_target_": "policy.diffusion.corruption.Mixture",
            "constant": 0.5,
            "ladder": 0.4,
            "prefix": 0.1,
            "max_rise": 2.0,
            "max_prefix": 7,
            "n_past": 2,
            "past_known": 0.5,
            "density": {
                "_target_": "policy.diffusion.corruption.LogUniform",
                "sigma_min": 0.01,
                "sigma_max": 20.0,
            },
        },
    }
    cfg = OmegaConf.create(saved)
    check_targets(cfg, TRAINING_MODULES)
    assert instantiate(cfg) == instantiate(configured("mixture").loss)
