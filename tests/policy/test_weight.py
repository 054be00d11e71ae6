"""Weights against the forms in which their papers give them."""

import pytest
import torch

from policy.diffusion.precond import EDM, X0, Eps, V
from policy.diffusion.weight import P2, MinSNR, raw_output

PRECONDITIONINGS = [EDM(), Eps(), V(), X0()]
SIGNAL_WEIGHTS = [MinSNR(5.0), P2(1.0, 1.0), P2(1.0, 0.5)]

# A level of the variance-preserving process for each action: alpha^2 + s^2 = 1.
ALPHA_BAR = torch.tensor([[0.9999, 0.9, 0.5, 0.1, 0.003]], dtype=torch.float64)
ALPHA, S = ALPHA_BAR.sqrt(), (1 - ALPHA_BAR).sqrt()
SNR = ALPHA_BAR / (1 - ALPHA_BAR)
SIGMA = S / ALPHA


def name(weight) -> str:
    return "raw_output" if weight is raw_output else str(weight)


def levels(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def errors() -> dict[str, torch.Tensor]:
    """Squared errors [1, Tp] of one prediction: of the clean chunk, of the noise, and of v."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, off = torch.randn(3, 1, 5, 3, generator=generator, dtype=torch.float64)
    alpha, s = ALPHA[..., None], S[..., None]
    x = alpha * x0 + s * eps
    x0_hat = x0 + off
    eps_hat = (x - alpha * x0_hat) / s
    return {
        name: difference.square().mean(dim=-1)
        for name, difference in {
            "x0": x0_hat - x0,
            "eps": eps_hat - eps,
            "v": (alpha * eps_hat - s * x0_hat) - (alpha * eps - s * x0),
        }.items()
    }


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_the_papers_loss_of_each_prediction(gamma):
    error, limited = errors(), SNR.clamp(max=gamma)
    ours = MinSNR(gamma)(SIGMA, X0()) * error["x0"]
    torch.testing.assert_close(ours, limited * error["x0"])
    torch.testing.assert_close(ours, limited / SNR * error["eps"])
    torch.testing.assert_close(ours, limited / (SNR + 1) * error["v"])


@pytest.mark.parametrize(("k", "gamma"), [(1.0, 1.0), (1.0, 0.5), (0.3, 2.0)])
def test_p2_is_the_papers_factor_of_the_noises_error(k, gamma):
    error = errors()
    ours = P2(k, gamma)(SIGMA, X0()) * error["x0"]
    torch.testing.assert_close(ours, error["eps"] / (k + SNR) ** gamma)


def test_min_snr_by_hand():
    weight = MinSNR(5.0)(levels(0.1, 0.5, 2.0), EDM())
    torch.testing.assert_close(weight, levels(5, 4, 0.25))


def test_p2_by_hand():
    sigma = levels(0.5, 2.0)
    torch.testing.assert_close(P2(1.0, 1.0)(sigma, EDM()), levels(1 / 1.25, 1 / 5))
    # SNR 4 and 1/4.
    torch.testing.assert_close(P2(1.0, 0.5)(sigma, EDM()), levels(4 / 5**0.5, 0.25 / 1.25**0.5))


def test_without_limits_all_are_the_plain_error_of_the_noise():
    plain = raw_output(SIGMA, Eps())
    torch.testing.assert_close(plain, SNR)
    torch.testing.assert_close(MinSNR(1e9)(SIGMA, EDM()), plain)
    torch.testing.assert_close(P2(1.0, 0.0)(SIGMA, EDM()), plain)


@pytest.mark.parametrize("weight", [raw_output, *SIGNAL_WEIGHTS], ids=name)
@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS, ids=str)
def test_weight_is_finite_and_only_clean_actions_have_none(weight, preconditioning):
    sigma = torch.tensor([[0.0, 0.001, 1.0, 80.0]])
    got = weight(sigma, preconditioning)
    assert got.shape == sigma.shape
    assert got.dtype == sigma.dtype
    assert got[0, 0] == 0
    assert got.isfinite().all()
    assert (got[0, 1:] > 0).all()


@pytest.mark.parametrize("weight", SIGNAL_WEIGHTS, ids=str)
def test_a_signals_weight_is_that_of_every_parameterisation(weight):
    ours = [weight(SIGMA, preconditioning) for preconditioning in PRECONDITIONINGS]
    assert all(torch.equal(w, ours[0]) for w in ours)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_a_min_snr_without_weight_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma is {gamma}"):
        MinSNR(gamma)


@pytest.mark.parametrize(("k", "gamma"), [(0.0, 1.0), (1.0, -0.5)])
def test_an_unbounded_p2_is_refused(k, gamma):
    with pytest.raises(ValueError, match=f"k is {k} and gamma {gamma}"):
        P2(k, gamma)
