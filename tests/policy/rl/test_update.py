"""Updates: ratios before the first step, signs of gradients, and ranks that learn as one."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from rl_walk import HORIZONS, make_behaviour, make_policy, make_slots
from torch.multiprocessing.spawn import spawn

from policy.nets.critic import Critic
from policy.ranks import Ranks
from policy.rl.actor_update import ActorUpdate
from policy.rl.chain import Kernel
from policy.rl.critic_update import CriticUpdate
from policy.rl.effort import Effort
from policy.rl.objectives.matching import AdvantageWeightedMatching, WeightedRegression
from policy.rl.objectives.objective import Items
from policy.rl.objectives.policy_gradient import PolicyGradient
from policy.rl.returns import Critical, GroupRelative
from policy.rl.rollout import collect
from policy.rl.update import Learner
from policy.types import ChunkSpace

KERNEL = Kernel([2.0, 0.5, 0.1, 0.0], explore_std=0.05)
OBJECTIVES = [
    PolicyGradient(),
    AdvantageWeightedMatching(draws=3),
    WeightedRegression(draws=3),
]


def play(policy, *, n=4, n_chunks=6, iteration=0, **settings):
    slots = make_slots(n, **{"is_constant": False, **settings})
    behaviour = make_behaviour(policy, KERNEL)
    return collect(slots, behaviour, n_chunks=n_chunks, iteration=iteration)[0]


def all_items(objective, policy, rollout, advantages):
    generator = torch.Generator().manual_seed(0)
    prepared = objective.prepare(policy, rollout, kernel=KERNEL, generator=generator)
    n_items = objective.n_items(rollout)
    index = torch.arange(rollout.rewards.numel() * n_items)
    return Items.at(index, rollout, n_items, prepared, advantages)


def learner(policy, objective, *, ranks=None, effort=None, rate=1e-3, advantage=None):
    torch.manual_seed(1)
    critic = Critic(n_features=1, size=16)
    effort = effort or Effort(batch_size=30, critic_batch_size=10)
    ranks = ranks or Ranks()
    return Learner(
        ActorUpdate(
            denoiser=policy,
            module=policy.net,
            optimizer=torch.optim.SGD(policy.net.parameters(), lr=rate),
            objective=objective,
            kernel=KERNEL,
            effort=effort,
            ranks=ranks,
            seed=0,
        ),
        CriticUpdate(critic, torch.optim.SGD(critic.parameters(), lr=1e-2), effort, ranks, seed=0),
        advantage or Critical(),
        ranks,
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
    assert float(terms.metrics["ratio"]) / len(items.t) == pytest.approx(1, abs=1e-4)


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


# What has become likelier though it was bad, or less likely though it was good, is still learned.
@pytest.mark.parametrize(
    ("advantage", "log_ratio", "is_learned"),
    [(1.0, 1.0, False), (1.0, -1.0, True), (-1.0, 1.0, True), (-1.0, -1.0, False)],
)
@pytest.mark.parametrize(
    ("objective", "known", "sign"),
    [(PolicyGradient(), "log_prob", 1), (AdvantageWeightedMatching(), "error", -1)],
    ids=["PolicyGradient", "AdvantageWeightedMatching"],
)
def test_an_item_beyond_its_clip_range_teaches_nothing_more(
    objective, known, sign, advantage, log_ratio, is_learned
):
    policy = make_policy()
    rollout = play(policy)
    items = all_items(objective, policy, rollout, torch.full_like(rollout.rewards, advantage))
    items.prepared[known].sub_(sign * log_ratio)  # As if all had become so much likelier.
    objective(policy, None, items, kernel=KERNEL).loss.backward()
    learned = any(p.grad.any() for p in policy.net.parameters() if p.grad is not None)
    assert learned == is_learned


def test_a_step_weighs_less_for_each_that_is_yet_to_come():
    policy = make_policy()
    rollout = play(policy)
    objective = PolicyGradient(gamma_denoising=0.5)
    items = all_items(objective, policy, rollout, torch.ones_like(rollout.rewards))
    terms = objective(policy, None, items, kernel=KERNEL)
    # Ratios are 1, so each of the three steps of a chunk brings its weight alone.
    expected = -rollout.rewards.numel() * (0.25 + 0.5 + 1.0)
    assert float(terms.loss.detach()) == pytest.approx(expected, rel=1e-3)


def test_an_advantage_is_limited_in_matching():
    policy = make_policy()
    rollout = play(policy)
    objective = AdvantageWeightedMatching(draws=2, max_advantage=0.5)
    items = all_items(objective, policy, rollout, torch.full_like(rollout.rewards, -7.0))
    terms = objective(policy, None, items, kernel=KERNEL)
    assert float(terms.loss.detach()) == pytest.approx(0.5 * len(items.t), rel=1e-3)


def test_noisy_chunks_of_matching_are_spread_over_the_levels():
    policy = make_policy()
    rollout = play(policy)
    matching = AdvantageWeightedMatching(draws=3, sigma_min=0.1, sigma_max=100.0)
    generator = torch.Generator().manual_seed(0)
    sigma = matching.draw(rollout, generator)["sigma"]
    # Three draws, one in each decade.
    assert ((sigma.log10().floor() + 1) == torch.arange(3)).all()


def test_only_executed_actions_are_matched_and_no_level_weighs_too_much():
    policy = make_policy()
    rollout = play(policy)
    objective = WeightedRegression(draws=1, sigma_min=0.01, sigma_max=0.02, max_weight=9.0)
    items = all_items(objective, policy, rollout, torch.ones_like(rollout.rewards))
    far = items.x_final + 1000.0 * ~items.executed[..., None]
    far = far + 2.0 * items.executed[..., None]
    distance = objective.distance(far, items.x_final, items)
    # EDM's weight at these levels is in the thousands.
    torch.testing.assert_close(distance, torch.full_like(distance, 9.0 * 2.0**2))


@pytest.mark.parametrize(
    ("kind", "n_counted"), [(PolicyGradient, 4), (AdvantageWeightedMatching, 2)]
)
def test_the_divergence_from_the_start_draws_back_to_it(kind, n_counted):
    policy, base = make_policy(), make_policy()
    with torch.no_grad():
        policy.net.get_parameter("out.bias").add_(0.3)
    rollout = play(policy)
    objective = kind(kl_weight=1.0)
    items = all_items(objective, policy, rollout, torch.zeros_like(rollout.rewards))
    objective(policy, base, items, kernel=KERNEL).loss.backward()
    # With the weights equal but for a raised bias, the divergence falls with the bias. Of the four
    # actions of a chunk two are executed, but all are part of the steps before the last.
    gradient = policy.net.get_parameter("out.bias").grad
    assert gradient is not None
    assert (gradient[:n_counted] > 0).all()
    assert not gradient[n_counted:].any()


def test_only_the_critic_learns_while_it_is_warmed_up():
    policy = make_policy()
    this = learner(policy, PolicyGradient())
    assert this.critic is not None
    before = [p.clone() for p in policy.net.parameters()]
    critic = [p.clone() for p in this.critic.module.parameters()]
    this.update(play(policy), iteration=0, with_actor=False)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.net.parameters(), strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(critic, this.critic.module.parameters(), strict=True)
    )


def test_an_update_ends_where_the_policy_has_moved_far_enough():
    policy = make_policy()
    effort = Effort(batch_size=20, epochs=20, max_kl=1e-6)
    metrics = learner(policy, PolicyGradient(), effort=effort, rate=1.0).update(
        play(policy), iteration=0
    )
    assert metrics["batches"] <= 3


def test_a_gradient_is_that_of_the_mean_over_the_items():
    policy = make_policy()
    rollout = play(policy)
    advantages = torch.linspace(-1, 1, rollout.rewards.numel()).view(rollout.shape)
    objective = PolicyGradient()
    items = all_items(objective, policy, rollout, advantages)
    loss = objective(policy, None, items, kernel=KERNEL).loss / len(items.t)
    gradients = torch.autograd.grad(loss, list(policy.net.parameters()))
    expected = torch.cat([each.flatten() for each in gradients]).norm()
    effort = Effort(batch_size=10_000, max_grad_norm=1e-3)
    this = learner(policy, objective, effort=effort).actor
    metrics = this.fit(rollout, advantages, iteration=0)
    assert metrics["gradient"] == pytest.approx(float(expected), rel=1e-3)
    shortened = torch.cat([p.grad.flatten() for p in policy.net.parameters() if p.grad is not None])
    assert float(shortened.norm()) == pytest.approx(1e-3, rel=1e-2)


def test_a_share_of_the_items_is_seen_where_epochs_is_below_one():
    policy = make_policy()
    rollout = play(policy)  # 24 chunks of 3 decisions.
    this = learner(policy, PolicyGradient(), effort=Effort(batch_size=9, epochs=0.5))
    assert this.update(rollout, iteration=0)["batches"] == 4


def test_a_loss_that_is_no_number_is_an_error():
    policy = make_policy()
    rollout = play(policy)
    with torch.no_grad():
        policy.net.get_parameter("out.bias").fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="gradient"):
        learner(policy, PolicyGradient()).update(rollout, iteration=0)


def test_what_is_alike_in_its_group_teaches_nothing():
    # Episodes of one group are alike, those of the other are not: only the other's are learned.
    policy = make_policy()
    rollout = play(policy, group_size=2, n_steps=5)
    rollout.rewards[:, :2] = 1.0
    this = learner(policy, PolicyGradient(), advantage=GroupRelative(group_size=2))
    seen = []
    this.actor = replace(
        this.actor, objective=Watched(lambda items: seen.append((items.n, items.advantage)))
    )
    this.update(rollout, iteration=0)
    slots, advantages = (torch.cat(part) for part in zip(*seen, strict=True))
    assert not advantages[slots < 2].any()
    torch.testing.assert_close(advantages[slots >= 2].abs(), torch.ones(3 * 3 * 2))


class Watched(PolicyGradient):
    """A policy gradient that shows its minibatches."""

    def __init__(self, show):
        super().__init__()
        object.__setattr__(self, "_show", show)

    def __call__(self, denoiser, reference, items, *, kernel):
        self.__dict__["_show"](items)
        return super().__call__(denoiser, reference, items, kernel=kernel)


def test_a_weight_of_regression_is_the_capped_exponential_of_the_advantage():
    policy = make_policy()
    rollout = play(policy)
    objective = WeightedRegression(draws=1, temperature=0.5, max_ratio=3.0)
    advantages = torch.linspace(-1, 2, rollout.rewards.numel()).view(rollout.shape)
    items = all_items(objective, policy, rollout, advantages)
    terms = objective(policy, None, items, kernel=KERNEL)
    weight = torch.minimum(torch.exp(2 * items.advantage), torch.tensor(3.0))
    torch.testing.assert_close(terms.loss, (weight * objective.errors(policy, items)).sum())


def test_levels_that_were_not_trained_are_refused():
    space = ChunkSpace(horizons=HORIZONS, action_size=1, sigma_min=0.02, sigma_max=20.0)
    AdvantageWeightedMatching().check(space)
    with pytest.raises(ValueError, match=r"objective.sigma_max starts at sigma 30"):
        WeightedRegression(sigma_max=30.0).check(space)
    with pytest.raises(ValueError, match=r"objective.sigma_min=0.02"):
        AdvantageWeightedMatching(sigma_min=0.01).check(space)


def test_an_empty_minibatch_has_a_loss_of_zero():
    # As on a rank whose environments have no item in it.
    policy = make_policy()
    rollout = play(policy)
    for objective in OBJECTIVES:
        items = all_items(objective, policy, rollout, torch.ones_like(rollout.rewards))
        none = items.t[:0]
        empty = replace(items, t=none, n=none, number=none)
        loss = objective(policy, None, empty, kernel=KERNEL).loss
        assert float(loss.detach()) == 0
        loss.backward()


def join_ranks(rank, size, folder):
    torch.set_num_threads(1)
    if size > 1:
        meeting = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    return Ranks(rank, size)


# Name -> settings of the environments, advantage, objective.
SCENES = {
    "critic": ({"broken_at": 3, "n_steps": 7}, Critical(), PolicyGradient()),
    "groups": ({"n_steps": 7, "group_size": 2}, GroupRelative(group_size=2), PolicyGradient()),
    "matching": ({"n_steps": 7}, Critical(), AdvantageWeightedMatching(draws=2)),
}


def train(rank, size, folder):
    """Two updates of one of `size` ranks, which have eight environments together."""
    ranks = join_ranks(rank, size, folder)
    for name, (settings, advantage, objective) in SCENES.items():
        policy = make_policy()
        this = learner(policy, objective, ranks=ranks, rate=0.02, advantage=advantage)
        for iteration in range(2):
            rollout = play(policy, n=8 // size, ranks=ranks, iteration=iteration, **settings)
            if rank == size - 1:  # One environment breaks.
                rollout.is_valid[1:, -1] = rollout.terminated[:, -1] = False
            metrics = this.update(rollout, iteration=iteration)
        torch.save({**this.state(), "metrics": metrics}, f"{folder}/{name}_{size}_{rank}.pt")
    # What one rank alone notices, all get to know.
    assert ranks.any(rank == size - 1)
    assert not ranks.any(False)
    assert ranks.agree(float(rank)) == 0
    ranks.leave()


def test_two_ranks_give_the_update_of_one_with_twice_the_environments(tmp_path):
    initial = make_policy().net.state_dict()
    train(0, 1, tmp_path)
    spawn(train, args=(2, str(tmp_path)), nprocs=2)
    for scene in SCENES:
        one, *two = (torch.load(tmp_path / f"{scene}_{rank}.pt") for rank in ("1_0", "2_0", "2_1"))
        for part in ("actor", "critic"):
            for name, weight in one[part]["weights"].items():
                for rank in two:
                    found = rank[part]["weights"][name]
                    torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-6)
        moved = [one["actor"]["weights"][k] - v for k, v in initial.items()]
        assert max(float(each.abs().max()) for each in moved) > 1e-3  # Else this proves nothing.
        assert two[0]["metrics"]["kl"] == pytest.approx(one["metrics"]["kl"], rel=1e-2, abs=1e-6)
