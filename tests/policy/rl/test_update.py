"""Updates: ratios before the first step, signs of gradients, and ranks that learn as one."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rl_walk import HORIZONS, make_policy, make_slots

from policy.nets.critic import Critic
from policy.rl.chain import Kernel
from policy.rl.objectives.matching import AdvantageWeightedMatching, WeightedRegression
from policy.rl.objectives.objective import Items
from policy.rl.objectives.policy_gradient import PolicyGradient
from policy.rl.ranks import Ranks
from policy.rl.returns import Critical
from policy.rl.rollout import collect
from policy.rl.update import Effort, Learner

KERNEL = Kernel([2.0, 0.5, 0.1, 0.0], explore_std=0.05)
OBJECTIVES = [
    PolicyGradient(),
    AdvantageWeightedMatching(draws=3),
    WeightedRegression(draws=3),
]


def play(policy, *, n=4, ranks=None, seed=0, n_chunks=6, iteration=0):
    slots = make_slots(n, seed=seed, ranks=ranks, is_constant=False)
    return collect(
        slots,
        policy,
        KERNEL,
        [policy] * 3,
        range(3),
        horizons=HORIZONS,
        n_chunks=n_chunks,
        iteration=iteration,
    )[0]


def all_items(objective, policy, rollout, advantages):
    generator = torch.Generator().manual_seed(0)
    prepared = objective.prepare(policy, rollout, kernel=KERNEL, generator=generator)
    n_items = objective.n_items(rollout)
    index = torch.arange(rollout.rewards.numel() * n_items)
    return Items.at(index, rollout, n_items, prepared, advantages)


def learner(policy, objective, *, ranks=None, effort=None, rate=1e-3):
    torch.manual_seed(1)
    critic = Critic(n_features=1, size=16)
    return Learner(
        denoiser=policy,
        actor=policy.net,
        critic=critic,
        actor_optimizer=torch.optim.SGD(policy.net.parameters(), lr=rate),
        critic_optimizer=torch.optim.SGD(critic.parameters(), lr=1e-2),
        objective=objective,
        advantage=Critical(),
        kernel=KERNEL,
        effort=effort or Effort(batch_size=30, critic_batch_size=10),
        ranks=ranks or Ranks(),
        seed=0,
    )


def test_the_ratio_is_one_for_every_pair_before_the_first_update():
    policy = make_policy()
    rollout = play(policy)
    objective = PolicyGradient()
    items = all_items(objective, policy, rollout, torch.ones_like(rollout.rewards))
    step = rollout.decided[items.number]
    mean, std = KERNEL.moments(policy, items.chunk(items.number), items.cond, step)
    x_next = items.chunk(items.number + 1)
    counted = KERNEL.counted(items.executed, step)
    log_prob = (KERNEL.log_prob(x_next, mean, std, step=step) * counted).sum(-1)
    # Another batch rounds differently; a density of width 0.05 magnifies that.
    torch.testing.assert_close(
        (log_prob - items.before("log_prob")).exp(), torch.ones(len(step)), rtol=0, atol=1e-3
    )


def test_matching_starts_at_a_ratio_of_one_too():
    policy = make_policy()
    rollout = play(policy)
    objective = AdvantageWeightedMatching(draws=3)
    items = all_items(objective, policy, rollout, torch.ones_like(rollout.rewards))
    terms = objective(policy, None, items, kernel=KERNEL)
    assert float(terms.metrics["ratio"] / terms.count) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES[:2], ids=lambda o: type(o).__name__)
def test_without_advantage_nothing_is_learned(objective):
    policy = make_policy()
    rollout = play(policy)
    items = all_items(objective, policy, rollout, torch.zeros_like(rollout.rewards))
    objective(policy, None, items, kernel=KERNEL).loss.backward()
    assert not any(p.grad.any() for p in policy.net.parameters() if p.grad is not None)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_a_step_makes_what_was_better_likelier(objective):
    policy = make_policy()
    rollout = play(policy)
    # Some chunks were good, the others were bad.
    generator = torch.Generator().manual_seed(3)
    signs = torch.rand(rollout.rewards.shape, generator=generator).round() * 2 - 1
    items = all_items(objective, policy, rollout, 2 * signs)
    optimizer = torch.optim.SGD(policy.net.parameters(), lr=1e-4)
    before = _likelihood(objective, policy, items)
    (objective(policy, None, items, kernel=KERNEL).loss / len(items.t)).backward()
    optimizer.step()
    gain = _likelihood(objective, policy, items) - before
    assert float((gain * items.advantage).sum()) > 0


@torch.no_grad()
def _likelihood(objective, policy, items):
    if not isinstance(objective, PolicyGradient):
        return -objective.errors(policy, items)
    step = items.rollout.decided[items.number]
    mean, std = KERNEL.moments(policy, items.chunk(items.number), items.cond, step)
    return KERNEL.log_prob(items.chunk(items.number + 1), mean, std, step=step).sum(-1)


def test_clip_ranges_grow_as_in_dppo():
    # Ren et al., appendix C: from 0.001 to 0.01 over ten steps.
    published = [0.001, 0.0012, 0.0014, 0.0018, 0.0023, 0.003, 0.004, 0.0054, 0.0073, 0.01]
    clips = PolicyGradient(clip=0.01, clip_noisiest=0.001).clips(10)
    torch.testing.assert_close(clips, torch.tensor(published), rtol=0, atol=5e-5)


def test_a_decision_out_of_its_clip_range_teaches_nothing_more():
    policy = make_policy()
    rollout = play(policy)
    advantages = torch.ones_like(rollout.rewards)
    objective = PolicyGradient(clip=0.1, clip_noisiest=0.1)
    items = all_items(objective, policy, rollout, advantages)
    items.prepared["log_prob"].sub_(1.0)  # As if all had become e times as likely.
    objective(policy, None, items, kernel=KERNEL).loss.backward()
    assert not any(p.grad.any() for p in policy.net.parameters() if p.grad is not None)


def test_the_divergence_from_the_start_draws_back_to_it():
    policy, base = make_policy(), make_policy()
    with torch.no_grad():
        policy.net.out.bias.add_(0.3)
    rollout = play(policy)
    objective = PolicyGradient(kl_weight=1.0)
    items = all_items(objective, policy, rollout, torch.zeros_like(rollout.rewards))
    objective(policy, base, items, kernel=KERNEL).loss.backward()
    # With the weights equal but for a raised bias, the divergence falls with the bias; of the four
    # actions of a chunk two are executed.
    gradient = policy.net.out.bias.grad
    assert (gradient[:2] > 0).all()
    assert not gradient[2:].any()


def test_only_the_critic_learns_while_it_is_warmed_up():
    policy = make_policy()
    this = learner(policy, PolicyGradient())
    before = [p.clone() for p in policy.net.parameters()]
    critic = [p.clone() for p in this.critic.parameters()]
    this.update(play(policy), iteration=0, with_actor=False)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.net.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critic, this.critic.parameters(), strict=True))


def test_an_update_ends_where_the_policy_has_moved_far_enough():
    policy = make_policy()
    effort = Effort(batch_size=20, epochs=20, max_kl=1e-6)
    metrics = learner(policy, PolicyGradient(), effort=effort, rate=1.0).update(
        play(policy), iteration=0
    )
    assert metrics["batches"] <= 3


def test_a_share_of_the_items_is_seen_where_epochs_is_below_one():
    policy = make_policy()
    rollout = play(policy)  # 24 chunks of 3 decisions.
    this = learner(policy, PolicyGradient(), effort=Effort(batch_size=9, epochs=0.5))
    assert this.update(rollout, iteration=0)["batches"] == 4


def test_a_loss_that_is_no_number_is_an_error():
    policy = make_policy()
    rollout = play(policy)
    with torch.no_grad():
        policy.net.out.bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="gradient"):
        learner(policy, PolicyGradient()).update(rollout, iteration=0)


def train(rank, size, port, folder):
    """Two updates of one of `size` ranks, which have four environments together."""
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=size)
    ranks, policy = Ranks(rank, size), make_policy()
    this = learner(policy, PolicyGradient(), ranks=ranks, rate=0.02)
    for iteration in range(2):
        rollout = play(policy, n=4 // size, ranks=ranks, iteration=iteration)
        metrics = this.update(rollout, iteration=iteration)
    state = {"net": policy.net.state_dict(), "critic": this.critic.state_dict()}
    torch.save({**state, "metrics": metrics}, f"{folder}/{size}_{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


def test_two_ranks_give_the_update_of_one_with_twice_the_environments(tmp_path):
    initial = make_policy().net.state_dict()
    train(0, 1, 0, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train, args=(2, port, str(tmp_path)), nprocs=2)
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for part in ("net", "critic"):
        for name, weight in one[part].items():
            for rank in two:
                torch.testing.assert_close(rank[part][name], weight, rtol=1e-4, atol=1e-6)
    moved = max(float((one["net"][k] - v).abs().max()) for k, v in initial.items())
    assert moved > 1e-3  # Else this would prove nothing.
    assert two[0]["metrics"]["kl"] == pytest.approx(one["metrics"]["kl"], rel=1e-2, abs=1e-6)
