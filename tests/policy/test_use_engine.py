"""Agents with an engine: what is taken, shared, refused and said."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from test_tick import CONTRACT, HORIZONS, Lowerable, Net, Restless, policy_of, sequential

from policy import engine, equip, evaluate
from policy.agent import Agent, NotFiniteError
from policy.candidates import Subject
from policy.control.engine import Choice, Timing
from policy.diffusion.step import dpmpp_2m, dpmpp_2m_sde
from policy.engine import EngineSettings, use_engine
from policy.entry import CONFIGS, compose_config, compose_part
from policy.flat import StartForm, TickForm
from policy.parity import action_range, error_in, error_of_start, examples_of, starts_of
from policy.planning import AgentPlanner
from policy.sampling.carry import UNKNOWN, moved, nothing_known
from policy.sampling.descent import Descent
from policy.sampling.ladder import flat
from policy.sampling.rti import RTI
from policy.tick import Tick
from policy.types import Carry, ChunkSpace, Request

SEEN = {"s": np.array([[[0.3, -0.2]]], np.float32)}


@pytest.fixture
def settings(tmp_path):
    return EngineSettings(name="fused", cache=tmp_path)


def agent_of(net, sampler=None):
    return Agent(policy_of(net), sampler or sequential(), rows=1)


def subject_of(tick, n, kind=Subject):
    form = TickForm(tick)
    inputs = [form.inputs(example) for example in examples_of(tick, rows=1, n=n)]
    return kind(tick, form, inputs, weights="fp32", lowered=None)


def use(agent, subject, call):
    agent.use(TickForm(agent.tick).back(call, subject.examples[0]))


def chunks(agent, n=3):
    streams, made = agent.start([5]), []
    for i in range(n):
        if i > 0:
            agent.shift(streams, HORIZONS.action)
        made.append(agent.chunk(streams, {"s": SEEN["s"] * (i + 1)}))
    return made


def rti(delay):
    """A sampler whose levels depend on the decided actions."""

    def levels(space):
        return flat(space, sigma=1.0 + space.inference_delay)

    space = ChunkSpace(replace(HORIZONS, pred=8), action_size=2, inference_delay=delay)
    return RTI(
        space=space,
        first=lambda space: replace_space(space),
        descent=Descent(dpmpp_2m),
        n_steps=1,
        restart=levels,
        sigma_min=0.1,
        rho=7.0,
    )


class Kept:
    """A sampler that looks at the levels of its carry, and whose levels time alone changes."""

    nfe, start_nfe = 1, 0

    def __init__(self, space):
        self.space = space

    def start(self, denoiser, cond, generator):
        return nothing_known(cond, self.space).replace(
            sigma=torch.zeros(len(cond), self.space.horizons.pred)
        )

    def shift(self, carry, n_executed):
        return moved(carry, n_executed)

    def __call__(self, denoiser, cond, carry, generator):
        sigma = torch.where(carry.sigma == UNKNOWN, 1.0, carry.sigma)
        x = denoiser(carry.x, sigma, cond)
        return x, Carry(x, torch.zeros_like(sigma))


def replace_space(space):
    made = sequential()
    made.space = space
    return made


def test_fused_gives_the_chunks_of_the_network_as_it_is_written(settings):
    agent = agent_of(Net())
    expected = chunks(agent)
    line = use_engine([agent], settings)
    np.testing.assert_array_equal(chunks(agent), expected)
    assert line.startswith("engine: fused, fp32 weights: p50 ")
    assert "(eager " in line
    assert "largest error 0 % of the action range, tolerance 1 %" in line


def test_a_lowered_network_is_taken_and_compared(settings):
    class Noted(Lowerable):
        asked: ClassVar = []

        def lowered(self, weights):
            self.asked.append(weights)
            return super().lowered(weights)

    use_engine([agent_of(Noted())], settings)
    assert Noted.asked == ["fp32"]
    with pytest.raises(ValueError, match=r"engine=fused cannot be used: its actions are off by"):
        use_engine([agent_of(Noted())], replace(settings, weights="bf16"))
    auto = replace(settings, name="auto", weights="bf16")
    agent = agent_of(Noted())
    expected = chunks(agent)
    line = use_engine([agent], auto)
    assert not line.startswith("engine: fused")  # As written, in bf16 or eagerly.
    assert "\nnot fused: its actions are off by " in line
    np.testing.assert_array_equal(chunks(agent), expected)


def test_the_largest_error_tells_how_far_a_network_is_off(settings):
    class Off(Net):
        def lowered(self, weights):
            return Net(0.3 * (1 + 1e-4))

    line = use_engine([agent_of(Off())], settings)
    share = float(line.partition("largest error ")[2].split(" ")[0])
    # x0 is about one: some 1e-4 of it against a range of 2, in percent, over three calls.
    assert 1e-4 < share < 0.1


def test_weights_that_the_network_has_no_form_for_are_refused(settings):
    with pytest.raises(ValueError, match=r"weights=int8 needs a network with a form of its own"):
        use_engine([agent_of(Net())], replace(settings, weights="int8"))


def test_a_form_that_has_not_such_weights_is_not_replaced_in_silence(settings):
    class Small(Net):
        def lowered(self, weights):
            if weights == "fp16":
                raise ValueError("choose one of fp32, bf16, int8")
            return Net()

    half = replace(settings, weights="fp16")
    with pytest.raises(ValueError, match="engine=fused cannot be used: choose one of fp32"):
        use_engine([agent_of(Small())], half)
    assert "recorded, fp16" in use_engine([agent_of(Small())], replace(half, name="recorded"))


def test_a_compiler_that_is_missing_is_said(settings):
    class Uncompiled(Net):
        def lowered(self, weights):
            raise RuntimeError("needs a C++ compiler and there is none")

    with pytest.raises(ValueError, match="engine=fused cannot be used: needs a C"):
        use_engine([agent_of(Uncompiled())], settings)
    line = use_engine([agent_of(Uncompiled())], replace(settings, name="auto"))
    # The network as it is written needs none.
    first, second = line.splitlines()
    assert first.startswith(("engine: recorded, fp32 weights: p50 ", "engine: eager: p50 "))
    assert second == "not fused: needs a C++ compiler and there is none"


def test_a_network_that_has_a_form_of_its_own_can_be_recorded_as_it_is_written(settings):
    class Uncompiled(Net):
        def lowered(self, weights):
            raise RuntimeError("needs a C++ compiler and there is none")

    agent = agent_of(Uncompiled())
    expected = chunks(agent)
    line = use_engine([agent], replace(settings, name="recorded"))
    assert line.startswith("engine: recorded, fp32 weights: p50 ")
    np.testing.assert_array_equal(chunks(agent), expected)
    with pytest.raises(ValueError, match=r"engine=recorded cannot be used: engine\.weights=int8"):
        use_engine([agent], replace(settings, name="recorded", weights="int8"))


def test_a_cache_that_cannot_be_written_is_said(settings):
    (settings.cache / "file").write_text("")
    nowhere = replace(settings, name="aot", cache=settings.cache / "file" / "engine")
    with pytest.raises(ValueError, match=r"could not be written to .*: set XDG_CACHE_HOME"):
        use_engine([agent_of(Net())], nowhere)


def test_a_sampler_whose_calls_vary_stays_as_it_is(settings):
    agent = agent_of(Net(), Restless(calls=1))
    expected = chunks(agent)
    with pytest.raises(ValueError, match=r"engine=fused cannot be used: the sampler makes 3"):
        use_engine([agent], settings)
    line = use_engine([agent], replace(settings, name="auto"))
    assert line.startswith("engine: eager, as the network is written (the sampler makes 3 denoiser")
    np.testing.assert_array_equal(chunks(agent), expected)


def test_a_network_that_branches_on_a_value_stays_as_it_is(settings):
    class Branching(Net):
        def forward(self, x, c_noise, cond):
            raw = super().forward(x, c_noise, cond)
            return raw if x.sum() > 0 else -raw

    with pytest.raises(ValueError, match="cannot be recorded"):
        use_engine([agent_of(Branching())], settings)


def test_a_network_that_hides_what_it_looks_at_is_found_out(settings):
    class Hiding(Net):
        def forward(self, x, c_noise, cond):
            return super().forward(x, c_noise, cond) + float(cond.numpy().sum())

    with pytest.raises(ValueError, match="its actions are off by"):
        use_engine([agent_of(Hiding())], settings)


def test_whatever_a_network_raises_when_it_is_recorded_is_said(settings):
    class Shy(Net):
        def forward(self, x, c_noise, cond):
            if torch._C._len_torch_dispatch_stack() > 0:
                raise TypeError("no modes, please")
            return super().forward(x, c_noise, cond)

    agent = agent_of(Shy())
    expected = chunks(agent)
    line = use_engine([agent], replace(settings, name="auto"))
    assert line == (
        "engine: eager, as the network is written (this sampler and network cannot be recorded "
        "(no modes, please))"
    )
    np.testing.assert_array_equal(chunks(agent), expected)


def test_eager_takes_the_place_of_an_earlier_engine(settings):
    agent = agent_of(Net())
    use_engine([agent], settings)
    with torch.no_grad():
        agent.policy.get_parameter("net.factor").add_(0.1)  # Which the engine does not see.
    assert use_engine([agent], EngineSettings()) == "engine: eager, as the network is written"
    np.testing.assert_array_equal(chunks(agent), chunks(agent_of(Net(0.4))))


def test_observations_in_another_order_of_memory_are_put_in_order():
    agent = agent_of(Net())
    subject = subject_of(agent.tick, 1)
    given = subject.examples[0]

    def call(*inputs):
        assert all(one.is_contiguous() for one in inputs)
        return subject.plain()(*inputs)

    turned = given[1].mT.contiguous().mT
    assert not turned.is_contiguous()
    ticked = TickForm(agent.tick).back(call, given)
    ticked({"s": given[0]}, turned, given[2], list(given[3:]))


def test_observations_of_another_shape_never_reach_what_was_compiled():
    agent = agent_of(Net())
    s, x, sigma, *noise = subject_of(agent.tick, 1).examples[0]

    def call(*inputs):
        raise AssertionError("it takes shapes for granted")

    ticked = TickForm(agent.tick).back(call, [s, x, sigma, *noise])
    for other in (s[:, :, :1], s.repeat(2, 1, 1)):
        with pytest.raises((ValueError, RuntimeError)):
            ticked({"s": other}, x, sigma, noise)


def test_ticks_at_levels_that_were_not_expected_are_compared_too():
    policy = policy_of(Net())
    for pred in range(3, 9):  # The shorter, the fewer numbers of executed actions there are.
        policy.horizons = replace(HORIZONS, pred=pred)
        space = ChunkSpace(policy.horizons, action_size=2)
        sampler = Kept(space)
        tick = Tick(policy, sampler)
        asked = []

        class Noted(Subject):
            def _at_sigma(self, tick, sigma, at, asked=asked):
                asked.append(sigma.tolist())
                return super()._at_sigma(tick, sigma, at)

        subject = subject_of(tick, 6, Noted)
        subject.fused()
        assert asked
        assert subject.examples[-1][2].tolist() not in asked


def test_another_dtype_than_fp32_is_refused(settings):
    agent = agent_of(Net())
    agent.policy.double()
    with pytest.raises(ValueError, match=r"weights are torch\.float64, an engine starts from"):
        use_engine([agent], settings)
    assert "engine: eager" in use_engine([agent], replace(settings, name="auto"))


def test_cuda_graphs_of_the_cpu_are_refused(settings):
    with pytest.raises(ValueError, match="device=cpu has no CUDA graphs: give device=cuda"):
        use_engine([agent_of(Net())], replace(settings, name="cuda_graph"))


def test_a_number_that_is_not_finite_names_its_level(settings):
    agent = agent_of(Net())
    use_engine([agent], settings)
    streams = agent.start([5])
    with pytest.raises(NotFiniteError, match="seed 5 at tick 0, first at sigma 10:"):
        agent.chunk(streams, {"s": np.full((1, 1, 2), np.nan, np.float32)})


def test_other_observations_than_the_compared_ones_go_by_the_network(settings):
    agent = agent_of(Net())
    use_engine([agent], settings)
    plain = agent_of(Net())
    for seen in (SEEN["s"].astype(kind) for kind in (np.float64, np.int64, np.uint8)):
        ours, theirs = (a.chunk(a.start([5]), {"s": seen, "more": seen}) for a in (agent, plain))
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(KeyError, match="the observation lacks 's'"):
        agent.chunk(agent.start([5]), {"other": SEEN["s"]})
    with pytest.raises(ValueError, match="the policy needs"):
        agent.chunk(agent.start([5]), {"s": SEEN["s"][:, :, :1]})


@pytest.mark.parametrize(
    ("made_for", "given", "fits"),
    [
        (torch.float32, torch.float64, True),
        (torch.float32, torch.int64, True),
        (torch.float64, torch.float32, True),
        (torch.uint8, torch.float32, False),
        (torch.uint8, torch.int64, False),
    ],
)
def test_numbers_that_would_be_others_go_by_the_network(made_for, given, fits):
    agent = agent_of(Net())
    s, *others = subject_of(agent.tick, 1).examples[0]
    seen = []

    def call(*inputs):
        seen.append(inputs[0])
        return TickForm(agent.tick).of(agent.tick)(*inputs)

    ticked = TickForm(agent.tick).back(call, [s.to(made_for), *others])
    ticked({"s": (200 * s).to(given)}, others[0], others[1], others[2:])
    assert [one.dtype for one in seen] == ([made_for] if fits else [])


def test_timings_are_taken_up_by_a_later_start(settings):
    assert "measured before" not in use_engine([agent_of(Net())], settings)
    assert "; measured before (" in use_engine([agent_of(Net())], settings)
    assert "measured before" not in use_engine([agent_of(Net(0.31))], settings)
    again = replace(settings, remeasure=True)
    assert "measured before" not in use_engine([agent_of(Net())], again)
    use_engine([agent_of(Net(0.32))], again)  # What is measured again is kept.
    assert "; measured before (" in use_engine([agent_of(Net(0.32))], settings)


class Compiled:
    """In the place of a compiler: counts, and gives what is fused."""

    def __init__(self, patch):
        self.n = 0
        patch.setattr(Subject, "compiled", self.compile(self))

    @staticmethod
    def compile(counter):
        def compiled(subject):
            counter.n += 1
            return subject.fused()

        return compiled


def test_what_depends_on_levels_alone_is_computed_once_for_usual_ones(settings):
    class Told(Exception):
        pass

    def tell(level):
        raise Told

    class Leveled(Net):
        operators: ClassVar = {torch.ops.aten.erf.default: tell}

        def forward(self, x, c_noise, cond):
            return super().forward(x, c_noise, cond) + c_noise.erf()[..., None]

    policy = policy_of(Leveled())
    policy.horizons = replace(HORIZONS, pred=8)
    agent = Agent(policy, rti(0), rows=1)
    expected = chunks(agent)
    subject = subject_of(agent.tick, 4)
    use(agent, subject, subject.fused())
    np.testing.assert_array_equal(chunks(agent), expected)
    streams = agent.start([5])
    agent.chunk(streams, SEEN)
    agent.shift(streams, 5)
    with pytest.raises(Told):
        agent.chunk(streams, SEEN)


class Counting(Net):
    """Of which it is known how often it was called, as it is written or not."""

    def __init__(self):
        super().__init__()
        self.n_calls = 0

    def forward(self, x, c_noise, cond):
        self.n_calls += 1
        return super().forward(x, c_noise, cond)

    def lowered(self, weights):
        return Net(0.3)


def test_streams_begin_by_the_engine_too(settings):
    policy = policy_of(net := Counting())
    policy.horizons = replace(HORIZONS, pred=8)
    agents = [Agent(policy, rti(delay), rows=2) for delay in (0, 0, 1)]
    expected = [chunks(agent) for agent in agents]
    line = use_engine(agents, settings)
    assert "streams begin" not in line
    net.n_calls = 0
    made = [chunks(agent) for agent in agents]
    assert net.n_calls == 0
    np.testing.assert_array_equal(made, expected)
    # One of two streams begins anew, and both are what they were.
    mixed = []
    for agent in (agents[0], Agent(policy, rti(0), rows=2)):
        streams, seen = agent.start([4, 5]), {"s": np.repeat(SEEN["s"], 2, axis=0)}
        made = [agent.chunk(streams, seen)]
        agent.shift(streams, HORIZONS.action)
        agent.renew(streams, 1)
        mixed.append([*made, agent.chunk(streams, seen)])
    np.testing.assert_array_equal(*mixed)


def test_a_start_whose_numbers_are_none_names_the_level_that_the_network_does(settings):
    policy = policy_of(Net())
    policy.horizons = replace(HORIZONS, pred=8)
    agent, said = Agent(policy, rti(0), rows=1), []
    for name in ("eager", "fused"):
        use_engine([agent], replace(settings, name=name))
        with pytest.raises(NotFiniteError) as error:
            agent.chunk(agent.start([5]), {"s": np.full((1, 1, 2), np.nan, np.float32)})
        said.append(str(error.value))
    assert "first at sigma 10:" in said[0]  # Ticks begin at 1.
    assert said[1] == said[0]


def test_a_start_that_is_too_far_off_stays_as_it_is_written(settings, monkeypatch):
    policy = policy_of(net := Counting())
    policy.horizons = replace(HORIZONS, pred=8)
    agent = Agent(policy, rti(0), rows=1)
    monkeypatch.setattr(equip, "error_of_start", lambda plain, other: 0.5)
    line = use_engine([agent], settings)
    assert (
        "\nstreams begin as the network is written: not fused, its actions are off by 50 %" in line
    )
    net.n_calls = 0
    chunks(agent)
    assert net.n_calls == 3


@pytest.mark.parametrize("of_starts", [True, False])
@pytest.mark.parametrize("is_lead", [True, False])
def test_the_largest_error_of_all_ticks_and_starts_is_said(
    settings, monkeypatch, of_starts, is_lead
):
    def compared(call, examples, expected, *, error, tolerance):
        return 0.005 if (error is error_of_start) == of_starts else 0.0

    monkeypatch.setattr(equip, "compared", compared)
    policy = policy_of(Net())
    policy.horizons = replace(HORIZONS, pred=8)
    agents = [Agent(policy, rti(0), rows=1)]
    if not is_lead:  # Its tick is another one.
        agents.insert(0, Agent(policy, rti(0).first, rows=1))
    line = use_engine(agents, settings)
    # The tick of the first one is compared by who chooses, and not off.
    worst = 0.5 if of_starts or not is_lead else 0
    assert f"largest error {worst:g} % of the action range" in line


def test_an_agent_that_cannot_use_the_engine_leaves_it_to_the_others(settings):
    class Ungraded(Net):
        """Its lowered form refuses levels that an urgent sampler asks for."""

        def lowered(self, weights):
            return OnlyTwice()

    class OnlyTwice(Net):
        def forward(self, x, c_noise, cond):
            if (x.shape[0], x.shape[1]) == (2, 4):
                raise ValueError("not for two rows")
            return super().forward(x, c_noise, cond)

    policy = policy_of(Ungraded())
    agents = [Agent(policy, sequential(), rows=rows) for rows in (1, 2)]
    auto = replace(settings, name="auto")
    expected = [chunks(agent) for agent in agents]
    line = use_engine(agents, auto)
    assert line.startswith(("engine: fused", "engine: recorded", "engine: eager"))
    if line.startswith("engine: fused"):
        assert "; recorded for 1 further ticks" in line
        assert "\nnot fused for the sampler Sequential: " in line
        assert "not for two rows" in line
    for agent, one in zip(agents, expected, strict=True):
        np.testing.assert_array_equal(chunks(agent), one)
    with pytest.raises(ValueError, match="engine=fused cannot be used: not fused for the sampler"):
        use_engine(agents, settings)


def test_agents_of_equal_ticks_share_what_is_compiled(settings, monkeypatch):
    compiled = Compiled(monkeypatch)
    agents = [agent_of(Net()) for _ in range(4)]
    line = use_engine(agents, replace(settings, name="compile"))
    assert compiled.n == 1
    assert "further ticks" not in line


def test_few_ticks_are_compiled_and_the_others_fused(settings, monkeypatch):
    compiled = Compiled(monkeypatch)
    policy = policy_of(Net())
    policy.horizons = replace(HORIZONS, pred=8)
    agents = [Agent(policy, rti(delay), rows=1) for delay in range(4)]
    expected = [chunks(agent) for agent in agents]
    line = use_engine(agents, replace(settings, name="compile"))
    assert compiled.n == equip.MOST_SLOW
    assert "; fused for 2 further ticks" in line
    for agent, one in zip(agents, expected, strict=True):
        np.testing.assert_array_equal(chunks(agent), one)


def test_best_measures_all(settings, monkeypatch):
    compiled = Compiled(monkeypatch)
    monkeypatch.setattr(Subject, "aot", lambda subject, folder: subject.fused())
    line = use_engine([agent_of(Net())], replace(settings, name="best"))
    assert compiled.n == 1
    for name in ("eager", "fused", "compile", "aot"):
        assert name in line


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "warp"}, "engine is 'warp', choose one of auto, best, eager"),
        ({"weights": "fp8"}, "engine.weights is 'fp8', choose one of fp32, int8"),
        ({"tolerance": 0}, "engine.tolerance is 0, it must be above 0"),
        ({"tolerance": float("nan")}, "engine.tolerance is nan"),
        ({"tolerance": "much"}, "engine.tolerance is much"),
        ({"tolerance": True}, "engine.tolerance is True"),
        ({"remeasure": "no"}, "engine.remeasure is 'no', it must be true or false"),
        ({"name": "eager", "weights": "int8"}, "engine=eager computes with fp32, not int8"),
    ],
)
def test_wrong_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        EngineSettings(**wrong)


def test_every_choice_of_the_configuration_is_an_engine():
    choices = sorted(path.stem for path in (CONFIGS / "engine").glob("*.yaml"))
    assert choices == sorted(engine.NAMES)
    for name in choices:
        assert instantiate(compose_part("engine", name)).name == name


def test_error_counts_actions_by_their_range_and_a_carry_by_its_noise():
    tick = Tick(policy_of(Net()), sequential())
    examples = examples_of(tick, rows=1, n=1)
    assert action_range(tick.policy, examples).tolist() == [2, 2]  # From -1 to 1.
    error = error_in(torch.tensor([2.0, 4.0]))
    sigma = torch.tensor([[0.0, 1.0, float("inf")]])
    plain = [torch.zeros(1, 3, 2), torch.zeros(1), torch.zeros(1, 3, 2), sigma]

    def off(i, value, at):
        changed = [result.clone() for result in plain]
        changed[i][at] = value
        return error(plain, changed)

    assert error(plain, plain) == 0
    assert off(0, 0.2, (0, 1, 0)) == pytest.approx(0.1)
    assert off(0, 0.2, (0, 1, 1)) == pytest.approx(0.05)
    assert off(2, 0.2, (0, 0, 0)) == pytest.approx(0.1)
    assert off(2, 0.2, (0, 1, 0)) == pytest.approx(0.05)  # As much noise as signal.
    assert off(2, 0.2, (0, 2, 0)) == 0  # Nothing is known of it.
    assert off(3, 0.9, (0, 1)) == np.inf
    assert off(3, 5.0, (0, 2)) == np.inf
    assert off(3, np.nan, (0, 0)) == off(3, np.nan, (0, 2)) == np.inf
    assert off(1, 3.0, (0,)) == np.inf
    assert np.isnan(off(0, np.nan, (0, 0, 0)))
    assert error_of_start(plain[1:], [plain[1], plain[2] + 0.2, sigma]) == pytest.approx(0.1)
    assert np.isnan(error_of_start(plain[1:], [plain[1], plain[2] + np.nan, sigma]))


def test_a_planner_plans_with_an_engine(pillar_checkpoint, settings):
    sampler = instantiate(compose_part("sampler", "ddim_3"))

    def plans(name):
        planner = AgentPlanner.load(pillar_checkpoint, sampler)
        line = use_engine(engine.agents_of(planner), replace(settings, name=name))
        assert f"engine: {name}" in line
        history = {
            field: np.zeros((planner.horizons.obs, *kind.shape), kind.dtype)
            for field, kind in planner.contract.observation.items()
        }
        requests = [Request(history, tick, delay=delay) for tick, delay in ((0, 0), (4, 1), (7, 2))]
        return [planner(request).actions for request in requests]

    for ours, theirs in zip(plans("fused"), plans("eager"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_contract_of_these_tests_has_one_field():
    assert list(CONTRACT.observation) == ["s"]


class Replaying:
    """In the place of a device that captures: does the work again."""

    def fixed(self, like):
        return like.clone()

    def pinned(self, like):
        return like.clone()

    def capture(self, function):
        return function

    def wait(self):
        pass


def test_only_what_is_waited_for_comes_to_the_host():
    class Counted(Replaying):
        n_pinned = 0

        def pinned(self, like):
            self.n_pinned += 1
            return super().pinned(like)

    policy = policy_of(Net())
    policy.horizons = replace(HORIZONS, pred=8)
    tick = Tick(policy, rti(0))
    ticks, starts = TickForm(tick), StartForm(tick)
    (example,), (start,) = examples_of(tick, rows=1, n=1), starts_of(tick, rows=1, n=1)
    # Actions and fault; of a start the fault.
    for form, inputs, n in ((ticks, ticks.inputs(example), 2), (starts, starts.inputs(start), 1)):
        device = Counted()
        Subject(tick, form, [inputs], weights="fp32", lowered=None).cuda_graph(device)
        assert device.n_pinned == len(inputs) + n


@pytest.mark.parametrize("make", [lambda: sequential(), lambda: sequential(dpmpp_2m_sde)])
def test_a_captured_tick_gives_the_chunks_of_the_network(make):
    agent = agent_of(Net(), make())
    expected = chunks(agent)
    subject = subject_of(agent.tick, 2)
    use(agent, subject, subject.cuda_graph(Replaying()))
    np.testing.assert_array_equal(chunks(agent), expected)


def test_a_captured_start_begins_streams_as_the_network_does():
    policy = policy_of(Net())
    policy.horizons = replace(HORIZONS, pred=8)
    agent = Agent(policy, rti(0), rows=1)
    expected = chunks(agent)
    form = StartForm(agent.tick)
    inputs = [form.inputs(example) for example in starts_of(agent.tick, rows=1, n=2)]
    subject = Subject(agent.tick, form, inputs, weights="fp32", lowered=None)
    ticks = subject_of(agent.tick, 2)
    agent.use(
        TickForm(agent.tick).back(ticks.plain(), ticks.examples[0]),
        form.back(subject.cuda_graph(Replaying()), inputs[0]),
    )
    np.testing.assert_array_equal(chunks(agent), expected)


class Wide(Net):
    """A product of matrices, which the other one has not."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, c_noise, cond):
        return super().forward(self.layer(x) + c_noise[..., None], c_noise, cond)


def test_programs_of_known_levels_round_as_the_one_for_any(settings):
    torch.manual_seed(0)
    policy = policy_of(Wide())
    policy.horizons = replace(HORIZONS, pred=8)
    agent, form = Agent(policy, rti(0), rows=1), TickForm
    inputs = [form(agent.tick).inputs(e) for e in examples_of(agent.tick, rows=1, n=4)]
    made = {
        weights: Subject(agent.tick, form(agent.tick), inputs, weights=weights, lowered=None)
        for weights in ("fp32", "bf16")
    }
    known, plain = made["bf16"].fused()(*inputs[1]), made["fp32"].fused()(*inputs[1])
    for ours, theirs in zip(known, made["bf16"].program(*inputs[1]), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(known[0], plain[0])


def test_timings_are_of_the_weights_that_were_measured(settings):
    use_engine([agent_of(Net())], settings)
    assert "; measured before (" in use_engine([agent_of(Net())], settings)
    # It has no matrices, so that the programs are the same.
    line = use_engine([agent_of(Net())], replace(settings, weights="bf16"))
    assert "measured before" not in line


def test_where_nothing_is_faster_an_earlier_engine_goes(settings, monkeypatch):
    net = Counting()
    agent = agent_of(net)
    use_engine([agent], settings)
    timings = {"eager": Timing(1e-3, 1e-3, 1e-3, 9)}
    choice = Choice("eager", agent.tick, 0.0, timings, (), is_recorded=False)
    monkeypatch.setattr(engine, "choose", lambda *args, **kwargs: choice)
    use_engine([agent], replace(settings, name="auto"))
    net.n_calls = 0
    chunks(agent, 1)
    assert net.n_calls == 3


def test_weights_of_16_bits_round(settings):
    torch.manual_seed(0)
    agent = agent_of(Wide())
    expected = chunks(agent)
    line = use_engine([agent], replace(settings, weights="bf16"))
    assert ", bf16 weights: " in line
    rounded = chunks(agent)
    assert not np.array_equal(rounded, expected)
    # bf16 has 8 bits; actions are about 1.
    np.testing.assert_allclose(rounded, expected, atol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_graph_of_the_gpu_gives_the_chunks_of_the_network(settings, weights):
    agent = Agent(policy_of(Net()), sequential(dpmpp_2m_sde), device="cuda", rows=1)
    expected = chunks(agent)
    line = use_engine([agent], replace(settings, name="cuda_graph", weights=weights))
    assert line.startswith(f"engine: cuda_graph, {weights} weights")
    np.testing.assert_allclose(chunks(agent), expected, atol=1e-5 if weights == "fp32" else 0.02)


def test_evaluate_says_and_records_its_engine(pillar_checkpoint, tmp_path, capsys):
    overrides = ["env=pillar", "episodes=1", "videos=0", "sampler=ddim_3", "engine=fused"]
    settings = [f"checkpoint={pillar_checkpoint}", f"out={tmp_path}", *overrides]
    results = evaluate.run(compose_config("evaluate", settings))
    assert results["engine"]["name"] == "fused"
    assert "\nengine: fused, fp32 weights: p50 " in capsys.readouterr().out
