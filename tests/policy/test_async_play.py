"""The control loop on a virtual clock, with a real policy, against the lockstep evaluation."""

import copy
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from policy import controls
from policy.controls import AsyncLoop, Lockstep
from policy.entry import compose_config
from policy.planning import AgentPlanner
from policy.tasks import maker
from policy.types import Request

# In few steps, which is all that they take of a test's time.
SHORT = {
    "ddim_8": ["sampler=ddim_8", "sampler.grid.n_steps=3"],
    "rti": ["sampler=rti", "sampler.first.grid.n_steps=3"],
    "rtc": ["sampler=rtc", "sampler.n_steps=3", "sampler.first.grid.n_steps=3"],
    "rtc_prefix": ["sampler=rtc_prefix", "sampler.n_steps=3", "sampler.first.grid.n_steps=3"],
    "streaming": ["sampler=streaming", "sampler.first.grid.n_steps=3"],
}


def config(checkpoint, *overrides):
    return compose_config(
        "evaluate",
        [
            f"checkpoint={checkpoint}",
            "env=pick_place",  # Whose episodes last, whatever an untrained policy does.
            "+env.max_episode_steps=30",
            "episodes=2",
            "rows=1",
            "num_envs=1",
            "action_horizon=4",
            *overrides,
        ],
    )


def played(cfg, control):
    made = control(cfg)
    torch.manual_seed(0)
    return made, [asdict(episode) for episode in made.measure(maker(cfg, None))]


@pytest.mark.parametrize("sampler", ["ddim_8", "rti", "rtc", "streaming"])
def test_t2_without_delay_it_equals_lockstep_bit_for_bit(pillar_checkpoint, sampler):
    cfg = config(pillar_checkpoint, *SHORT[sampler], "seed=3")
    _, expected = played(cfg, Lockstep)
    cfg.control = "async"
    _, episodes = played(cfg, AsyncLoop)
    assert episodes == expected


@pytest.mark.parametrize("sampler", ["ddim_8", "rti", "rtc_prefix", "streaming"])
@pytest.mark.parametrize("delay", [1, 3])
def test_a_constant_delay_that_is_known_equals_lockstep_with_it(pillar_checkpoint, sampler, delay):
    cfg = config(pillar_checkpoint, *SHORT[sampler], f"inference_delay={delay}")
    _, expected = played(cfg, Lockstep)
    late = config(pillar_checkpoint, *SHORT[sampler], f"delay={delay}", f"seam.delay.fixed={delay}")
    made, episodes = played(late, AsyncLoop)
    assert episodes == expected
    assert set(made.log.delays_in_ticks) == {delay}


def test_two_runs_with_the_same_faults_are_the_same(pillar_checkpoint):
    faults = ["delay=1", "faults.jitter=2", "faults.drop=0.2", "sampler.grid.n_steps=2"]
    cfg = config(pillar_checkpoint, *faults)
    (first, a), (second, b) = played(cfg, AsyncLoop), played(cfg, AsyncLoop)
    assert a == b
    assert first.log.report() == second.log.report()
    assert first.log.n_failed > 0


def test_limits_hold_in_the_simulator(pillar_checkpoint):
    cfg = config(
        pillar_checkpoint,
        "delay=1",
        "sampler.grid.n_steps=2",
        "governor.limits.velocity=[0.1,0.1,0.1,1]",
        "episodes=1",
    )
    made, _ = played(cfg, AsyncLoop)
    facts = made.facts()
    assert facts["governor_settings"]["limits"]["velocity"] == [0.1, 0.1, 0.1, 1]
    assert facts["refusals"]["velocity"] > 0


def test_settings_of_the_other_control_are_refused(pillar_checkpoint):
    with pytest.raises(ValueError, match="inference_delay=2"):
        Lockstep(config(pillar_checkpoint, "delay=2"))
    with pytest.raises(ValueError, match="delay=2"):
        AsyncLoop(config(pillar_checkpoint, "inference_delay=2"))


def history(planner):
    fields = planner.contract.observation
    rng = np.random.default_rng(0)
    return {
        name: rng.uniform(-0.1, 0.1, (planner.horizons.obs, *field.shape)).astype(field.dtype)
        for name, field in fields.items()
    }


def planner_of(checkpoint, sampler="rti"):
    cfg = config(checkpoint, *SHORT[sampler])
    return AgentPlanner.load(cfg.checkpoint, instantiate(cfg.sampler), action_horizon=4)


def test_r6_an_epoch_is_a_stream_of_its_own(pillar_checkpoint):
    planner = planner_of(pillar_checkpoint)
    seen = history(planner)
    first = planner(Request(seen, 0, epoch=0, seed=7)).actions
    planner(Request(seen, 4, epoch=0, seed=7))
    again = planner(Request(seen, 0, epoch=1, seed=7)).actions
    other = planner(Request(seen, 0, epoch=2, seed=8)).actions
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    planner(Request(seen, 5, epoch=2, seed=8))
    with pytest.raises(ValueError, match="tick 0 came after one for tick 5"):
        planner(Request(seen, 0, epoch=2, seed=8))


def test_decided_actions_are_those_of_the_last_chunk(pillar_checkpoint):
    planner = planner_of(pillar_checkpoint)
    seen = history(planner)
    first = planner(Request(seen, 0, seed=7)).actions
    second = planner(Request(seen, 4, seed=7, delay=3)).actions
    np.testing.assert_allclose(second[:3], first[4:7], rtol=0, atol=1e-6)  # Scaled and back.
    assert not np.allclose(second[3:8], first[7:12], atol=1e-4)


def test_more_decided_actions_than_fit_are_planned_as_the_most_that_do(pillar_checkpoint):
    planner = planner_of(pillar_checkpoint)
    # 16 predicted, 4 executed, and real-time iteration has to know one more.
    assert planner.max_delay == 11
    planner(Request(history(planner), 0, delay=99))


def test_warming_up_leaves_no_trace(pillar_checkpoint):
    planner, fresh = planner_of(pillar_checkpoint), planner_of(pillar_checkpoint)
    planner.warm_up()
    request = Request(history(planner), 0, seed=3)
    assert np.array_equal(planner(request).actions, fresh(request).actions)


def test_r4_what_was_asked_and_the_seed_give_the_same_actions_again(pillar_checkpoint):
    asked, answered = [], []

    class Recorded(AgentPlanner):
        def __call__(self, request):
            chunk = super().__call__(request)
            asked.append(copy.deepcopy(request))
            answered.append(chunk.actions.copy())
            return chunk

    faults = ["delay=1", "faults.jitter=2", *SHORT["streaming"], "episodes=1"]
    cfg = config(pillar_checkpoint, *faults)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "AgentPlanner", Recorded)
        played(cfg, AsyncLoop)
    assert len(asked) > 4
    fresh = planner_of(pillar_checkpoint, sampler="streaming")
    for request, actions in zip(asked, answered, strict=True):
        assert np.array_equal(fresh(request).actions, actions)


def test_s12_an_interruption_keeps_what_was_finished_and_ends_in_good_order(pillar_checkpoint):
    limits = ["governor.limits.velocity=0.5", "governor.limits.acceleration=2.0"]
    cfg = config(pillar_checkpoint, "episodes=3", "sampler.grid.n_steps=1", *limits)
    loop, asked = AsyncLoop(cfg), []

    class Interrupted:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        @property
        def requested(self):
            asked.append(1)
            return len(asked) > 45  # In the second of three episodes of 30 ticks.

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "Interruption", Interrupted)
        episodes = loop.measure(maker(cfg, None))
    assert [(e.seed, e.length) for e in episodes] == [(100000, 30)]


def test_a_start_suffers_the_same_faults_wherever_it_is_played(pillar_checkpoint):
    settings = ["delay=1", "faults.jitter=3", "sampler.grid.n_steps=1"]
    _, two = played(config(pillar_checkpoint, *settings, "seed=7"), AsyncLoop)
    cfg = config(pillar_checkpoint, *settings, "seed=7")
    cfg.episodes = 1
    made = AsyncLoop(cfg)
    made._cfg.seed = 8  # The faults keep the seed of the run, as in the second episode above.
    assert asdict(made.measure(maker(cfg, None))[0]) == two[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("delay=-1", "delay is -1 ticks"),
        ("faults.jitter=-2", r"faults\.jitter is -2 ticks"),
        ("seam.delay.fixed=1.5", r"seam\.delay\.fixed is 1\.5"),
        ("seam.manner.patience=null", r"seam\.manner\.patience is None"),
    ],
)
def test_wrong_settings_are_told_before_a_checkpoint_is_loaded(wrong, message):
    cfg = compose_config("evaluate", ["checkpoint=nowhere", "env=pillar", "control=async", wrong])
    with pytest.raises(Exception, match=message) as error:
        AsyncLoop(cfg)
    assert "nowhere" not in str(error.value)


@pytest.mark.parametrize("changed", ["seam=blend", "governor.limits.velocity=0.01"])
def test_lockstep_refuses_what_it_does_not_look_at(pillar_checkpoint, changed):
    with pytest.raises(ValueError, match="control=lockstep looks at no"):
        Lockstep(config(pillar_checkpoint, changed))
