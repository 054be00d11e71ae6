"""Denoising chains as policies: densities, floors, and the gradient that they give."""

import math

import pytest
import torch

from policy.diffusion.likelihood import step_entropy, step_kl, step_log_prob
from policy.diffusion.step import ancestral_moments
from policy.rl.chain import Kernel

F64 = torch.float64


def linear(a, b):
    """A denoiser x0_hat = a x + b cond."""
    return lambda x, sigma, cond: a * x + b * cond[:, None, :]


def test_log_probability_entropy_and_divergence_are_those_of_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    x, mean, other = torch.randn(3, 2, 4, 3, generator=generator, dtype=F64)
    std = torch.rand(2, 4, 1, generator=generator, dtype=F64) + 0.1
    p, q = (torch.distributions.Normal(m, std) for m in (mean, other))
    torch.testing.assert_close(step_log_prob(x, mean, std), p.log_prob(x).sum(-1))
    kl = torch.distributions.kl_divergence(p, q).sum(-1)
    torch.testing.assert_close(step_kl(mean, other, std), kl)
    entropy = p.entropy().expand(2, 4, 3).sum(-1)
    torch.testing.assert_close(step_entropy(std, action_size=3), entropy)


def test_a_step_without_noise_has_no_density():
    x = torch.randn(2, 3, 1)
    assert not step_log_prob(x, x, torch.zeros(2, 3, 1)).any()


def test_judging_by_a_wider_normal_damps_the_gradient_by_the_square_of_the_ratio():
    # d log p / d mean = (x - mean) / std^2, with the same x.
    mean = torch.zeros(1, 1, 1, dtype=F64, requires_grad=True)
    x, narrow, wide = torch.full((1, 1, 1), 0.3, dtype=F64), 0.1, 0.4
    gradients = [
        torch.autograd.grad(step_log_prob(x, mean, torch.full_like(x, std)).sum(), mean)[0]
        for std in (narrow, wide)
    ]
    torch.testing.assert_close(gradients[1], gradients[0] * (narrow / wide) ** 2)


@pytest.mark.parametrize("sigma_next", [0.5, 0.05, 0.0])
def test_a_floor_keeps_the_level_of_the_chunk_where_that_allows_it(sigma_next):
    # With the exact prediction of a clean chunk of 0, a chunk of level 1 must come to sigma_next.
    n, floor = 200_000, 0.1
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 1, generator=generator, dtype=F64)
    levels = torch.ones(n, 1, dtype=F64), torch.full((n, 1), sigma_next, dtype=F64)
    mean, std = ancestral_moments(x, torch.zeros_like(x), *levels, eta=0.0, min_std=floor)
    least = floor * math.sqrt(1 + sigma_next**2)  # From the variance-preserving scale.
    assert float(std[0]) == pytest.approx(least)
    reached = mean + std * torch.randn(n, 1, 1, generator=generator, dtype=F64)
    # The standard error of a standard deviation of n normal numbers is 1 / sqrt(2 n) of it.
    assert float(reached.std()) == pytest.approx(max(sigma_next, least), rel=5 / math.sqrt(2 * n))


def test_a_floor_below_the_noise_of_a_step_changes_nothing_and_clean_actions_have_none():
    x = torch.randn(2, 3, 2)
    sigma, sigma_next = torch.tensor([[2.0, 2.0, 0.0]] * 2), torch.tensor([[1.0, 1.0, 0.0]] * 2)
    plain = ancestral_moments(x, 0.1 * x, sigma, sigma_next, eta=1.0)
    floored = ancestral_moments(x, 0.1 * x, sigma, sigma_next, eta=1.0, min_std=0.2)
    for a, b in zip(plain, floored, strict=True):
        torch.testing.assert_close(a, b)
    assert not floored[1][:, 2].any()


@pytest.mark.parametrize("explore_std", [0.0, 0.05])
def test_drawn_steps_have_the_density_that_the_moments_say(explore_std):
    kernel = Kernel([2.0, 0.7, 0.2, 0.0], explore_std=explore_std)
    denoiser, cond = linear(0.3, 0.5), torch.randn(5, 2)
    generator = torch.Generator().manual_seed(0)
    chain = kernel.draw([denoiser] * 3, cond, shape=(4, 2), generator=generator)
    for number in range(3):
        step = torch.full((5,), number)
        mean, std = kernel.moments(denoiser, chain.x[:, number], cond, step)
        log_prob = kernel.log_prob(chain.x[:, number + 1], mean, std, step=step)
        torch.testing.assert_close(chain.log_prob[:, number], log_prob)
    is_last_drawn = explore_std > 0
    assert chain.log_prob[:, -1].any() == is_last_drawn
    assert kernel.has_noise(2) == is_last_drawn


def test_steps_are_judged_by_no_narrower_normal_than_asked_for():
    # On the variance-preserving scale, as the floor of exploration.
    kernel = Kernel([2.0, 0.7, 0.0], explore_std=0.05, likelihood_std=0.3)
    x, mean = torch.randn(2, 2, 4, 2)
    std = torch.tensor([[0.05], [5.0]])[:, None].expand(2, 4, 1)
    step = torch.tensor([0, 0])
    judged = torch.tensor([0.3 * math.sqrt(1 + 0.7**2), 5.0])[:, None, None].expand(2, 4, 1)
    log_prob = kernel.log_prob(x, mean, std, step=step)
    torch.testing.assert_close(log_prob, step_log_prob(x, mean, judged))


def test_predictions_are_clipped():
    kernel = Kernel([2.0, 0.7, 0.0], clip=0.5)
    x, cond, step = 100 * torch.randn(8, 4, 2), torch.randn(8, 2), torch.ones(8, dtype=torch.long)
    mean, _ = kernel.moments(linear(0.3, 0.5), x, cond, step)  # The last step's is x0_hat.
    assert float(mean.abs().max()) == 0.5


def test_steps_of_other_numbers_share_a_batch():
    kernel = Kernel([2.0, 0.7, 0.2, 0.0])
    x, cond, step = torch.randn(3, 4, 2), torch.randn(3, 2), torch.tensor([2, 0, 1])
    mean, std = kernel.moments(linear(0.3, 0.5), x, cond, step)
    for i in range(3):
        one = kernel.moments(linear(0.3, 0.5), x[i : i + 1], cond[i : i + 1], step[i : i + 1])
        torch.testing.assert_close(mean[i : i + 1], one[0])
        torch.testing.assert_close(std[i : i + 1], one[1])


def test_one_step_is_a_gaussian_policy_round_the_prediction():
    kernel = Kernel([20.0, 0.0], explore_std=0.1)
    cond = torch.randn(1, 2).expand(100_000, -1)
    generator = torch.Generator().manual_seed(0)
    # A prediction that does not depend on the noise that it starts from.
    x = kernel.draw([linear(0.0, 0.5)], cond, shape=(1, 2), generator=generator).x[:, -1, 0]
    error = 5 * 0.1 / math.sqrt(len(x))  # Five standard errors.
    torch.testing.assert_close(x.mean(0), 0.5 * cond[0], rtol=0, atol=error)
    torch.testing.assert_close(x.std(0), torch.full((2,), 0.1), rtol=0, atol=error)


def test_which_actions_count():
    executed = torch.tensor([[True, True, False]])
    step = torch.tensor([1])
    few, every = (Kernel([2.0, 0.7, 0.0], count_all=count) for count in (False, True))
    assert few.counted(executed, step - 1).tolist() == executed.tolist()
    assert every.counted(executed, step - 1).all()
    assert every.counted(executed, step).tolist() == executed.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"explore_std": 1e-4}, "chain.explore_std is 0.0001"),
        ({"likelihood_std": 2.0}, "chain.likelihood_std is 2.0"),
        ({"eta": 1.5}, "chain.eta is 1.5"),
        ({"clip": 0.0}, "chain.clip is 0.0"),
        ({"eta": 0.0, "explore_std": 0.0}, "no step of the chain is drawn"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "must decrease"),
    ],
)
def test_degenerate_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Kernel(**{"sigmas": [2.0, 0.5, 0.0], **settings})


def test_the_policy_gradient_is_that_of_finite_differences():
    """Two steps of an environment, three of denoising, all linear and Gaussian.

    The state goes from s to s + a, the reward of a step is -(s + a - 1)^2. The score-function
    estimate over both chains must agree with the difference quotient of the mean return, which is
    taken with common random numbers.
    """
    kernel = Kernel([1.5, 0.6, 0.3, 0.0], explore_std=0.2)
    n, theta = 400_000, torch.tensor([0.3, -0.4], dtype=F64)

    def play(theta, seed, n_episodes):
        generator = torch.Generator().manual_seed(seed)
        torch.set_default_dtype(F64)
        try:
            state, total = torch.zeros(n_episodes, 1), torch.zeros(n_episodes)
            chains, rewards = [], []
            for _ in range(2):
                denoiser = linear(theta[0], theta[1])
                drawn = kernel.draw([denoiser] * 3, state, shape=(1, 1), generator=generator)
                chains.append((drawn.x, state))
                state = state + drawn.x[:, -1, 0]
                rewards.append(-((state - 1).square()[:, 0]))
                total = total + rewards[-1]
            return total, chains, rewards
        finally:
            torch.set_default_dtype(torch.float32)

    h = 1e-4
    numeric = []
    for i in range(2):
        shifted = [theta + h * sign * torch.eye(2, dtype=F64)[i] for sign in (1, -1)]
        up, down = (play(t, 0, n)[0].mean() for t in shifted)
        numeric.append(float(up - down) / (2 * h))

    _, chains, rewards = play(theta, 1, n)
    learned = theta.clone().requires_grad_(True)
    to_go = [rewards[0] + rewards[1], rewards[1]]
    # Of 20 disjoint parts of the episodes, to know the error of the estimate.
    parts = [
        torch.autograd.grad(part.mean(), learned)[0]
        for part in _surrogate_parts(kernel, chains, to_go, learned, 20)
    ]
    gradient, error = torch.stack(parts).mean(0), torch.stack(parts).std(0) / math.sqrt(20)
    assert (error < 0.05 * gradient.abs()).all()  # Else this would prove nothing.
    difference = (gradient - torch.tensor(numeric, dtype=F64)).abs()
    assert (difference < 4 * error + 0.01 * gradient.abs()).all()


@pytest.mark.parametrize("count_all", [True, False])
def test_the_gradient_needs_the_actions_that_are_not_executed(count_all):
    """Each of two actions is predicted from the other one, and the first alone is executed.

    x0_hat = theta * (x of the other action), the reward is the square of the executed action. The
    executed action has learned of theta through the other one, which only counts with count_all.
    """
    kernel = Kernel([1.5, 0.6, 0.0], explore_std=0.2, count_all=count_all)
    n, theta, h = 400_000, torch.tensor(0.7, dtype=F64), 1e-4
    executed = torch.tensor([[True, False]])

    def swapping(theta):
        return lambda x, sigma, cond: theta * x.flip(1)

    def play(theta):
        generator = torch.Generator().manual_seed(0)
        cond = torch.zeros(n, 1, dtype=F64)
        denoiser = swapping(theta)
        return kernel.draw([denoiser] * 2, cond, shape=(2, 1), generator=generator).x

    def reward(x):
        return x[:, -1, 0, 0].square()

    numeric = float(reward(play(theta + h)).mean() - reward(play(theta - h)).mean()) / (2 * h)
    learned, x, total = theta.clone().requires_grad_(True), play(theta), torch.zeros(n, dtype=F64)
    for number in range(2):
        step = torch.full((n,), number)
        mean, std = kernel.moments(swapping(learned), x[:, number], torch.zeros(n, 1), step)
        log_prob = kernel.log_prob(x[:, number + 1], mean, std, step=step)
        counted = log_prob * kernel.counted(executed.expand(n, -1), step)
        total = total + counted.sum(-1) * (reward(x) - reward(x).mean())
    parts = torch.stack(
        [torch.autograd.grad(p.mean(), learned, retain_graph=True)[0] for p in total.chunk(20)]
    )
    gradient, error = float(parts.mean()), float(parts.std()) / math.sqrt(20)
    assert error < 0.05 * abs(numeric)  # Else this would prove nothing.
    if count_all:
        assert abs(gradient - numeric) < 4 * error + 0.01 * abs(numeric)
    else:
        assert 0 < gradient < 0.8 * numeric  # What it learned through the other action is missing.


def _surrogate_parts(kernel, chains, to_go, theta, n_parts):
    """The surrogate [n] of the test above, of disjoint parts of the episodes."""
    n = len(to_go[0])
    for part in torch.arange(n).chunk(n_parts):
        total = torch.zeros(len(part), dtype=F64)
        for (x, state), value in zip(chains, to_go, strict=True):
            for number in range(3):
                step = torch.full((len(part),), number)
                denoiser = linear(theta[0], theta[1])
                mean, std = kernel.moments(denoiser, x[part, number], state[part], step)
                log_prob = kernel.log_prob(x[part, number + 1], mean, std, step=step).sum(-1)
                total = total + log_prob * (value[part] - value.mean())
        yield total
