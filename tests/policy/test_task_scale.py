"""Tasks whose numbers differ a thousandfold: every hand-over of a policy uses the right scale."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from data.dataset import WindowDataset
from data.joint_contract import TASK, task_field
from data.mixture import Mixture
from data.normalize import Normalizer
from data.store import EpisodeStore
from data.types import Batch, Contract, Field, Horizons
from policy import fit, frontier
from policy.agent import Agent
from policy.diffusion.loss import DenoisingLoss
from policy.diffusion.precond import EDM
from policy.diffusion.schedule import karras
from policy.diffusion.step import dpmpp_2m
from policy.experts import conditions
from policy.lesson import Lesson
from policy.model import DiffusionPolicy
from policy.nets.encoders import StateEncoder
from policy.nets.mlp import ResidualMLP
from policy.play import Executor
from policy.reaction import _scaled_difference
from policy.rl.behaviour import Behaviour
from policy.rl.chain import Chain, Kernel
from policy.sampling.carry import nothing_known
from policy.sampling.descent import Descent
from policy.sampling.sequential import Sequential
from policy.types import ChunkSpace

HORIZONS = Horizons(obs=2, pred=4, action=2)
TASKS = ["near", "far"]
# Centre and half the range of the actions of each task, whose states are twice as large.
CENTRES, SCALES = torch.tensor([[3e-3, -1e-3], [5.0, 2.0]]), torch.tensor([1e-3, 1.0])
CONTRACT = Contract(
    observation={"state": Field((2,), scaled_per=TASK), TASK: task_field(TASKS)},
    action=Field((2,), scaled_per=TASK),
    control_dt=0.1,
)


class Zeros(DiffusionPolicy):
    """Predicts the middle of every action's range."""

    def forward(self, x, sigma, cond):
        return torch.zeros_like(x)

    def at(self, sigma):
        return lambda x, sigma, cond: torch.zeros_like(x)


def make_policy() -> Zeros:
    told = torch.eye(2).repeat_interleave(2, dim=0)
    ends = torch.tensor([-1.0, 1.0]).repeat(2)[:, None] * (told @ SCALES)[:, None]
    action = told @ CENTRES + ends
    arrays = {"state": 2 * action, TASK: told, "action": action}
    normalizer = Normalizer.fit(CONTRACT, {name: x.numpy() for name, x in arrays.items()})
    encoder = StateEncoder(feature_shapes={"state": (2,), TASK: (2,)}, obs_horizon=2)
    net = ResidualMLP(action_size=2, cond_size=8, pred_horizon=4, size=8, n_blocks=1)
    return Zeros(encoder, net, EDM(0.5), normalizer, CONTRACT, HORIZONS)


@pytest.fixture
def policy() -> Zeros:
    return make_policy()


def observing(*tasks: int) -> dict[str, Tensor]:
    """What is seen in the middle of each of these tasks."""
    state = 2 * CENTRES[list(tasks)][:, None].expand(-1, 2, -1)
    return {"state": state, TASK: torch.eye(2)[list(tasks)][:, None].expand(-1, 2, -1)}


def arrays_of(*tasks: int) -> dict[str, np.ndarray]:
    return {name: values.numpy().copy() for name, values in observing(*tasks).items()}


def test_observations_and_actions_are_scaled_by_what_they_tell(policy):
    seen = observing(1, 0, 1)
    features = policy.features(seen)
    torch.testing.assert_close(features["state"], torch.zeros(3, 2, 2), rtol=0, atol=1e-6)
    assert torch.equal(features[TASK], seen[TASK])
    x = torch.tensor([1.0, -1.0]).expand(3, 4, 2)
    actions = policy.actions(x, seen)
    for row, task in enumerate((1, 0, 1)):
        expected = CENTRES[task] + SCALES[task] * torch.tensor([1.0, -1.0])
        torch.testing.assert_close(actions[row], expected.expand(4, 2), rtol=1e-5, atol=0)
    torch.testing.assert_close(policy.chunk(actions, seen), x)


def test_actions_are_not_scaled_without_what_they_answer(policy):
    for use in (policy.actions, policy.chunk):
        with pytest.raises(ValueError, match=r"'action' has 2 sets .* give the observation"):
            use(torch.zeros(3, 4, 2))
        with pytest.raises(KeyError, match="lacks 'task', which tells"):
            use(torch.zeros(3, 4, 2), {"state": torch.zeros(3, 2, 2)})
    with pytest.raises(KeyError, match="lacks 'task': the policy needs"):
        policy.features({"state": torch.zeros(3, 2, 2)})


def make_agent(policy: Zeros, rows: int) -> Agent:
    grid = karras(n_steps=3, sigma_min=0.01, sigma_max=20.0, rho=7.0)
    space = ChunkSpace(HORIZONS, action_size=2)
    return Agent(policy, Sequential(space=space, grid=grid, descent=Descent(dpmpp_2m)), rows=rows)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_streams_of_different_tasks_side_by_side_act_in_their_own_units(policy, rows):
    agent, tasks = make_agent(policy, rows), (0, 1, 1, 0, 1)
    chunk = agent.chunk(agent.start([3, 4, 6, 11, 12]), arrays_of(*tasks))
    expected = CENTRES[list(tasks)][:, None].expand(5, 4, 2)
    np.testing.assert_allclose(chunk, expected, rtol=1e-6)
    some = agent.chunk(agent.start([3, 4, 6, 11, 12]), arrays_of(*tasks), [1, 3])
    np.testing.assert_array_equal(some[[1, 3]], chunk[[1, 3]])


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([0.0, 0.0], "[0, 0]"),
        ([0.5, 0.5], "[0.5, 0.5]"),
        ([-3.0, -2.0], "[-3, -2]"),
        ([1.0, 1.0], "[1, 1]"),
        ([0.0, 0.999], "[0, 0.999]"),
        ([2.0, 0.0], "[2, 0]"),
        ([1.0, np.nan], "[1, nan]"),
    ],
)
def test_a_task_that_is_not_one_of_them_is_refused(policy, told, said):
    agent, seen = make_agent(policy, 2), arrays_of(0, 1)
    seen[TASK][1, -1] = told
    with pytest.raises(ValueError, match="exactly one of the 2 elements must be 1") as error:
        agent.chunk(agent.start([0, 1]), seen)
    assert f"slot 1 is told 'task' = {said} at its newest step" in str(error.value)
    agent.chunk(agent.start([0, 1]), seen, [0])  # Nobody asks for the other one.


def test_only_the_newest_step_tells_the_task_and_rounding_does_not_matter(policy):
    agent, seen = make_agent(policy, 2), arrays_of(0, 1)
    expected = agent.chunk(agent.start([0, 1]), seen)
    seen[TASK][:, 0] = 0.5
    seen[TASK][:, -1] += 5e-7
    np.testing.assert_allclose(agent.chunk(agent.start([0, 1]), seen), expected, rtol=1e-6)


class Starting:
    """A sampler that counts the streams that begin."""

    space = ChunkSpace(HORIZONS, action_size=2)
    nfe = start_nfe = 0

    def __init__(self):
        self.n_started = 0

    def start(self, denoiser, cond, generator):
        self.n_started += 1
        return nothing_known(cond, self.space)

    def shift(self, carry, n_executed):
        return carry

    def __call__(self, denoiser, cond, carry, generator):
        return torch.zeros(len(cond), 4, 2), carry


def test_a_stream_that_is_told_another_task_begins_anew(policy):
    """What it has planned is in the scale of the former one."""
    sampler = Starting()
    agent = Agent(policy, sampler, rows=1)
    streams = agent.start([0])
    counts = []
    for task in (0, 0, 1, 1, 0):
        agent.chunk(streams, arrays_of(task))
        counts.append(sampler.n_started)
    assert counts == [1, 1, 2, 2, 3]
    agent.restart(streams, 0, seed=1)
    agent.chunk(streams, arrays_of(1))
    assert sampler.n_started == 4


def test_training_sees_actions_in_the_scale_of_their_task(policy):
    x0 = torch.tensor([[1.0, -0.5], [-1.0, 0.25]])[:, None].expand(2, 4, 2)
    observation = observing(1, 0)
    batch = Batch(observation, policy.actions(x0, observation), torch.zeros(2, 4, dtype=torch.bool))
    loss = DenoisingLoss(lambda batch, length, generator: torch.ones(batch, length), 1.0, True)
    lesson = Lesson.of(
        policy, loss, batch, torch.Generator(), augment=lambda features, _: features, draws=2
    )
    expected = x0.repeat_interleave(2, dim=0)
    torch.testing.assert_close(lesson.noised.x0, expected, rtol=0, atol=1e-5)


def test_chains_are_executed_in_the_units_of_their_environment(policy):
    kernel = Kernel([1.0, 0.0])
    behaviour = Behaviour(policy, kernel, [policy], range(1), HORIZONS)
    chain = Chain(torch.zeros(3, 2, 4, 2), torch.zeros(3, 1, 4))
    actions = behaviour.actions(chain, arrays_of(1, 0, 0))
    expected = CENTRES[[1, 0, 0]][:, None].expand(3, HORIZONS.action, 2)
    np.testing.assert_allclose(actions, expected, rtol=1e-6)


def test_differences_of_actions_are_those_of_their_task(policy):
    agent = cast(Agent, SimpleNamespace(policy=policy, contract=CONTRACT, device="cpu"))
    calm = CENTRES[[0, 1]].numpy()
    moved = calm + np.array([[1e-3, 0.0], [0.0, -2.0]])
    difference = _scaled_difference(agent, calm, moved, seen=arrays_of(0, 1))
    np.testing.assert_allclose(difference, [[1.0, 0.0], [0.0, -2.0]], atol=1e-5)


def test_jumps_from_plan_to_plan_are_measured_in_the_scale_of_their_task(policy):
    """One jump by half the range in each task: a root mean square of 1, in both elements."""
    executor = Executor(HORIZONS, 0)
    for told, jump in ((arrays_of(0, 1), 0.0), (arrays_of(0, 1), 1.0)):
        chunk = (CENTRES + jump * SCALES[:, None])[:, None].expand(2, 4, 2).numpy()
        executor.actions(chunk, told=policy.told(told))
    assert [list(told) for told in executor.told] == [[TASK]]
    agent = cast(Agent, SimpleNamespace(policy=policy, device="cpu"))
    assert frontier._jump(agent, executor) == pytest.approx(1, abs=1e-5)


def test_latency_is_measured_on_a_task_that_there_is(policy):
    settings = SimpleNamespace(repeats=2)
    rig = SimpleNamespace(agent=lambda row, rows: make_agent(policy, rows), _cfg=settings)
    assert all(ms > 0 for ms in frontier.Rig._latency(cast(frontier.Rig, rig), {}).values())


def test_conditions_of_tasks_are_in_the_middle_of_each(policy):
    seen = []
    policy.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert conditions(policy)[0] == TASKS
    torch.testing.assert_close(seen[0]["state"], torch.zeros(2, 2, 2), rtol=0, atol=1e-5)
    assert torch.equal(seen[0][TASK], torch.eye(2)[:, None].expand(2, 2, 2))


def test_chunks_that_anchors_are_made_of_span_the_range_of_each_task(policy, tmp_path):
    plain = Contract({"state": Field((2,))}, Field((2,)), 0.1)
    rng, stores = np.random.default_rng(0), []
    for number, task in enumerate(TASKS):
        store = EpisodeStore.create(tmp_path / task, replace(plain, task=task))
        action = rng.uniform(-1, 1, (9, 2)) * SCALES[number].item() + CENTRES[number].numpy()
        store.append({"state": 2 * action, "action": action})
        stores.append(store)
    mixture = Mixture(stores, tell_task=True, statistics="task")
    dataset = WindowDataset(mixture, HORIZONS)
    policy.normalizer = Normalizer.fit(dataset.contract, dataset.arrays())
    for chunks in fit.all_chunks(policy, dataset).chunk(2):
        assert chunks.amin((0, 1)).tolist() == pytest.approx([-1, -1], abs=1e-5)
        assert chunks.amax((0, 1)).tolist() == pytest.approx([1, 1], abs=1e-5)
