"""Our kernels against the field's library on Diffusion Policy's schedule.

The library works in variance-preserving variables, ours are those divided by sqrt(abar).
"""

import pytest
import torch

from policy.diffusion.schedule import cosine_vp_sigmas
from policy.diffusion.step import History, ancestral, dpmpp_2m, no_history

diffusers = pytest.importorskip("diffusers", reason="a development dependency")
SCHEDULE = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
TP, DA = 8, 2


def eps_of(x_vp, k):
    """The noise in a variance-preserving chunk at training index k, of actions that are 1 or -1."""
    abar = 1 / (1 + cosine_vp_sigmas()[k] ** 2)
    x0_hat = torch.tanh(abar.sqrt() * x_vp / (1 - abar))
    return (x_vp - abar.sqrt() * x0_hat) / (1 - abar).sqrt()


def start():
    return torch.randn(3, TP, DA, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ours(indices, solver, noises, clip=None):
    """Denoise from and to the given training indices; -1 is clean. Returns the clean chunk."""
    sigmas = cosine_vp_sigmas()
    x_vp = start()
    x = x_vp * (1 + sigmas[indices[0]] ** 2).sqrt()
    history = no_history(x)
    for i, k in enumerate(indices):
        last = i + 1 == len(indices)
        level = x.new_full(x.shape[:2], sigmas[k].item())
        level_next = x.new_full(x.shape[:2], 0.0 if last else sigmas[indices[i + 1]].item())
        x_vp = x / (1 + sigmas[k] ** 2).sqrt()
        x0_hat = x - sigmas[k] * eps_of(x_vp, k)
        if clip is not None:
            x0_hat = x0_hat.clamp(-clip, clip)
        noise = None if noises is None else lambda i=i: noises[i]
        x_next = solver(x, x0_hat, level, level_next, history=history, noise=noise)
        history = History(x, x0_hat, level)
        x = x_next
    return x


def test_ddpm_of_100_steps(monkeypatch):
    noises = torch.randn(
        100, 3, TP, DA, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    scheduler = diffusers.DDPMScheduler(**SCHEDULE, clip_sample=True, variance_type="fixed_small")
    scheduler.set_timesteps(100)
    drawn = iter(noises)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: next(drawn)
    )
    x = start()
    for k in scheduler.timesteps.tolist():
        x = scheduler.step(eps_of(x, k), k, x).prev_sample

    def ddpm(*args, **kwargs):
        return ancestral(*args, **kwargs, eta=1.0)

    got = ours(list(range(99, -1, -1)), ddpm, noises, clip=1.0)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_steps", [100, 10])
def test_ddim(n_steps):
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(n_steps)
    x = start()
    for k in scheduler.timesteps.tolist():
        x = scheduler.step(eps_of(x, k), k, x).prev_sample

    def ddim(*args, **kwargs):
        return ancestral(*args, **kwargs, eta=0.0)

    got = ours(scheduler.timesteps.tolist(), ddim, None)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-5)


def test_dpm_solver_2m():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SCHEDULE, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(10)
    indices = scheduler.timesteps.tolist()
    x = start()
    for k in indices:
        x = scheduler.step(eps_of(x, k), k, x).prev_sample
    got = ours(indices, dpmpp_2m, None)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-5)
