"""Whatever is wanted, what is sent is finite and within all limits; faults are latched."""

import logging
import math
import threading
import time

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from data.types import Field, Kind
from policy.control.governor import Governor, State
from policy.control.limits import Limits
from policy.control.refusals import N_EVENTS, Reason

INF = math.inf
DT = 0.02
ARM = Field(shape=(2,), unit="rad", low=(-1, -1), high=(1, 1))
GRIPPER = Field(shape=(2,), unit="rad", low=(-1, 0), high=(1, 1), discrete=(1,))
MOTION = {"velocity": 1.0, "acceleration": 10.0, "jerk": 500.0}
SETTINGS = {
    "pose_tolerance": 0.01,
    "max_action_age": 0.5,
    "max_observation_age": 0.1,
    "watchdog": 0.2,
    "max_clamped_ticks": None,
}


def governor(action=ARM, dt=DT, *, limits=None, **changes):
    made = Limits.of(action, dt, **(MOTION if limits is None else limits))
    return Governor(action, dt, made, **{**SETTINGS, **changes})


class Driven:
    """A governor called tick by tick, by a clock, with what was sent last."""

    def __init__(self, governed, *, pose=(0.0, 0.0), dt=DT):
        self.governor, self.dt, self.tick = governed, dt, 0
        self.sent = []
        governed.arm(None if pose is None else np.array(pose))

    def __call__(self, *wanted, action_age=0.0, observation_age=0.0):
        now = self.tick * self.dt
        sent = self.governor(
            np.array(wanted, float) if wanted else None,
            now=now,
            observed=now - observation_age,
            asked=now - action_age,
        )
        self.tick += 1
        self.sent.append(None if sent is None else sent.tolist())
        return self.sent[-1]


def assert_within(path, limits, dt, *, is_sum=False):
    """Positions, velocities, accelerations and jerks of commands [n, Da] after rest at path[0].

    A command is a float64, so its n-th difference is off by up to 2**n roundings of the largest
    one; rates may exceed their limits by a 1e-8 part. Positions are exact, unless they are a sum of
    commands (`is_sum`), rounded once for each.
    """
    path = np.array(path)
    assert np.isfinite(path).all()
    slack = 4 * np.finfo(float).eps * abs(path).max(axis=0)
    beyond = len(path) * slack if is_sum else 0.0
    assert (path >= limits.low - beyond).all()
    assert (path <= limits.high + beyond).all()
    change = np.concatenate([np.repeat(path[:1], 3, axis=0), path])
    for name in ("velocity", "acceleration", "jerk"):
        change = np.diff(change, axis=0) / dt
        slack = slack * 2 / dt
        assert (abs(change) <= getattr(limits, name) * (1 + 1e-8) + slack).all(), name


# What is wanted of an element, as a function of what it does: "to" a place, as far on as the rates
# allow, with a share of it ("push"), a walk of steps of that size, or something that must not be.
ORDERS = st.one_of(
    st.tuples(st.just("to"), st.floats(-1.5, 1.5) | st.sampled_from([1.0, -1.0, 1e9, -1e9])),
    st.tuples(st.just("push"), st.floats(-1, 1) | st.sampled_from([1.0, -1.0, 0.999])),
    st.tuples(st.just("push"), st.sampled_from([1.0, -1.0])),
    st.tuples(st.just("walk"), st.floats(-3, 3)),
    st.tuples(
        st.sampled_from(["none", "old action", "old observation", "nan", "inf", "shape", "stop"]),
        st.just(0.0),
    ),
)
RUNS = st.lists(st.tuples(ORDERS, ORDERS, st.integers(1, 12)), min_size=1, max_size=12)
# Ticks for a way from limit to limit at the highest velocity, and to reach the highest velocity and
# acceleration; 0 ticks: no limit.
TICKS = st.floats(-0.5, 2).map(lambda x: 10.0**x) | st.just(0.0)


@st.composite
def situations(draw, kind: Kind = "absolute"):
    """A field, its limits, control_dt and the size of things, from very tight to no limit."""
    dt = draw(st.sampled_from([0.001, 0.02, 0.1]))
    span = draw(st.floats(-2, 1).map(lambda x: 10.0**x))
    low, high = draw(st.sampled_from([(-span, span), (0.0, span), (-span, INF), (-INF, INF)]))
    rates = {name: [] for name in MOTION}
    for _ in range(2):
        size = span
        for limit in rates.values():
            n_ticks = draw(TICKS)
            size /= dt * (n_ticks or 1.0)
            limit.append(size if n_ticks else INF)
    field = Field(shape=(2,), kind=kind)
    return field, Limits.of(field, dt, low=low, high=high, **rates), dt, span


class Adversary:
    """Wants what brings an element as fast as the rates allow to where it cannot stop."""

    def __init__(self, limits, dt, span):
        self.rates = np.minimum(
            np.array([limits.velocity * dt, limits.acceleration * dt**2, limits.jerk * dt**3]), 1e6
        )
        self.span = span

    def wanted(self, order, element, path):
        what, size = order
        q = [row[element] for row in path[-3:]]
        q = [q[0]] * (3 - len(q)) + q
        v, a = q[2] - q[1], q[2] - 2 * q[1] + q[0]
        highest_v, highest_a, highest_j = self.rates[:, element]
        if what == "to":
            return size * self.span
        if what == "walk":
            return q[2] + size * highest_v
        faster = np.clip(a + size * highest_j, -highest_a, highest_a)
        return q[2] + float(np.clip(v + faster, -highest_v, highest_v))


def play(governed, situation, runs, *, is_delta=False):
    """Run through all orders, resetting after each fault; checks every way from rest to rest."""
    _, limits, dt, span = situation
    adversary = Adversary(limits, dt, span)
    pose = np.minimum(np.maximum(np.zeros(2), limits.low), limits.high)
    now, path = 0.0, [pose]
    governed.arm(pose)
    for first, second, n in runs:
        for _ in range(n):
            now += dt
            ages = {"observed": now, "asked": now}
            wanted = np.array([adversary.wanted(o, i, path) for i, o in enumerate((first, second))])
            wanted = wanted - path[-1] if is_delta else wanted
            order = first[0]
            if order in ("nan", "inf"):
                wanted[1] = float(order)
            elif order == "old action":
                ages["asked"] -= 1.0
            elif order == "old observation":
                ages["observed"] -= 1.0
            elif order == "stop":
                governed.emergency_stop()
            unusable = {"none": None, "shape": np.zeros(3)}
            sent = governed(unusable.get(order, wanted), now=now, **ages)
            if sent is not None:
                path.append(path[-1] + sent if is_delta else sent)
        if governed.state is State.FAULT:
            event(str(governed.fault))
            for _ in range(10_000):
                if governed.is_at_rest:
                    break
                sent = governed(np.full(2, span), now=now, observed=now, asked=now)
                path.append(path[-1] + sent if is_delta else sent)
            rest = path[-1]
            assert governed.state is State.FAULT
            governed.reset()
            governed.arm(rest)
    assert_within(path, limits, dt, is_sum=is_delta)


@settings(deadline=None, max_examples=300)
@given(situations(), RUNS)
def test_s2_any_stream_of_positions_is_sent_within_all_limits(situation, runs):
    field, limits, dt, _ = situation
    made = Governor(field, dt, limits, **{**SETTINGS, "start": "approach"})
    play(made, situation, runs)


@settings(deadline=None, max_examples=200)
@given(situations(kind="delta"), RUNS)
def test_s2_any_stream_of_changes_is_sent_within_all_limits(situation, runs):
    field, limits, dt, _ = situation
    made = Governor(field, dt, limits, **SETTINGS)
    play(made, situation, runs, is_delta=True)


# What must never be sent, and is no motion to be limited either.
NOT_FINITE = [math.nan, INF, -INF]


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize("element", [0, 1])
def test_s1_a_number_that_is_not_finite_is_a_latched_fault_and_a_hold(number, element):
    driven = Driven(governor(GRIPPER))
    for k in range(10):
        driven(0.0005 * k, 1.0)
    wanted = [0.005, 1.0]
    wanted[element] = number
    driven(*wanted)
    assert driven.governor.fault is Reason.NOT_FINITE
    assert driven.governor.counts[Reason.NOT_FINITE] == 1
    for _ in range(20):
        driven(0.1, 0.0)  # All is well again, but nobody has said so.
    assert driven.governor.state is State.FAULT
    assert driven.governor.is_at_rest
    assert driven.sent[-1] == driven.sent[-10]
    assert driven.sent[-1][1] == 1.0  # The gripper stays.
    assert_within([(0.0, 1.0), *driven.sent], driven.governor.limits, DT)


def test_s1_a_first_action_that_is_not_finite_holds_the_pose():
    driven = Driven(governor(), pose=(0.1, 0.2))
    assert driven(math.nan, 0.2) == [0.1, 0.2]
    assert driven.governor.state is State.FAULT


def test_large_finite_numbers_are_finite():
    driven = Driven(governor(start="approach"))
    driven(1e308, 1e308)
    assert driven.governor.fault is None


@pytest.mark.parametrize("wanted", [np.zeros(3), np.zeros((1, 2)), 0.0, "ab", np.array(["a", 1])])
def test_a_wrong_shape_is_a_fault(wanted):
    driven = Driven(governor())
    driven(0.0, 0.0)
    sent = driven.governor(wanted, now=0.02, observed=0.02, asked=0.02)
    np.testing.assert_array_equal(sent, [0.0, 0.0])
    assert driven.governor.fault is Reason.WRONG_SHAPE


@pytest.mark.parametrize(("first", "is_refused"), [(0.109, False), (0.111, True), (0.089, True)])
def test_s3_the_first_action_is_at_the_armed_pose_or_refused(first, is_refused):
    driven = Driven(governor(), pose=(0.1, 0.2))
    sent = driven(first, 0.2)
    assert (driven.governor.fault is Reason.START_POSE) == is_refused
    if is_refused:
        assert sent == [0.1, 0.2]
        newest = driven.governor.events[-1]
        assert (newest.element, newest.wanted, newest.sent) == (0, first, 0.1)


def test_s3_a_gripper_has_no_pose_to_start_from():
    driven = Driven(governor(GRIPPER), pose=(0.0, 0.0))
    assert driven(0.0, 1.0) == [0.0, 1.0]


def test_an_approach_goes_to_the_first_action_and_is_no_clamping():
    driven = Driven(governor(start="approach", max_clamped_ticks=5))
    while driven(0.5, -0.5) != [0.5, -0.5]:
        assert driven.tick < 100
    assert driven.tick > 6
    assert driven.governor.state is State.ACTIVE
    for _ in range(6):
        driven(-0.5, 0.5)
    assert driven.governor.fault is Reason.CLAMPED_TOO_LONG
    assert_within([(0.0, 0.0), *driven.sent], driven.governor.limits, DT)


def test_without_a_pose_the_first_action_is_taken_for_it():
    driven = Driven(governor(), pose=None)
    assert driven() is None
    assert driven(math.inf, 0.0) is None  # A fault, and nothing to hold.
    driven.governor.reset()
    driven.governor.arm(None)
    assert driven(0.7, -0.7) == [0.7, -0.7]
    assert driven(0.8, -0.7) != [0.8, -0.7]


@pytest.mark.parametrize("pose", [(0.0,), (0.0, math.nan), ((0.0, 0.0),)])
def test_a_pose_that_is_none_cannot_be_armed(pose):
    with pytest.raises(ValueError, match="give 2 finite numbers"):
        governor().arm(np.array(pose))


def test_a_pose_beyond_the_limits_cannot_be_armed_but_by_the_tolerance():
    made = governor()
    with pytest.raises(ValueError, match=r"element 1 of the pose is 1.02, its limits are -1 to 1"):
        made.arm(np.array([0.0, 1.02]))
    made.arm(np.array([0.0, 1.009]))
    sent = made(np.array([0.0, 1.0]), now=0, observed=0, asked=0)
    np.testing.assert_array_equal(sent, [0.0, 1.0])


def test_s6_every_clamp_is_counted_and_remembered():
    driven = Driven(governor(GRIPPER))
    driven(0.0, 0.5)
    sent = [driven(0.5, 2.0), driven(0.5, 0.5)]
    counts = driven.governor.counts
    assert (counts[Reason.VELOCITY], counts[Reason.POSITION]) == (2, 1)
    assert sum(counts.values()) == 3
    first, gripper, last = driven.governor.events
    assert (first.tick, first.reason, first.element) == (1, Reason.VELOCITY, 0)
    assert (first.wanted, first.sent) == (0.5, sent[0][0])
    assert (gripper.tick, gripper.element, gripper.wanted, gripper.sent) == (1, 1, 2.0, 1.0)
    assert (last.tick, last.sent) == (2, sent[1][0])


def test_s6_the_memory_of_refusals_is_bounded():
    driven = Driven(governor(start="approach"))
    for _ in range(N_EVENTS):
        driven(2.0, 2.0)
    assert len(driven.governor.events) == N_EVENTS
    assert driven.governor.counts[Reason.POSITION] == 2 * N_EVENTS


def test_s6_the_log_has_a_line_a_second_for_a_reason_and_one_for_a_fault(caplog):
    driven = Driven(governor(start="approach"))
    with caplog.at_level(logging.WARNING, logger="policy.control.refusals"):
        for _ in range(101):  # Two seconds and a tick.
            driven(2.0, 2.0)
        driven(math.nan, 0.0)
        driven(math.nan, 0.0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert lines[0] == "tick 0: position, element 0: wanted 2, sent 0.004"
    assert "(99 more since the last line)" in lines[1]
    assert lines[3] == "fault, braking to a hold: tick 101: not finite"


@pytest.mark.parametrize(("n", "is_fault"), [(10, False), (11, True)])
def test_s6_clamping_for_too_many_ticks_in_a_row_is_a_fault(n, is_fault):
    driven = Driven(governor(max_clamped_ticks=10))
    driven(0.0, 0.0)
    for _ in range(n):
        driven(0.0, 2.0)
    assert (driven.governor.fault is Reason.CLAMPED_TOO_LONG) == is_fault
    assert driven.governor.counts[Reason.CLAMPED_TOO_LONG] == is_fault


def moving(**changes):
    """At 0.5 rad/s for a while."""
    driven = Driven(governor(**changes))
    for k in range(20):
        driven(0.01 * min(max(k - 3, 0), 1 + k / 2), 0.0)
    while driven(driven.sent[-1][0] + 0.01, 0.0)[0] - driven.sent[-2][0] < 0.01 - 1e-9:
        assert driven.tick < 60
    return driven


UNUSABLE = {
    "starved": ((), {}),
    "old action": ((0.3, 0.0), {"action_age": 0.6}),
    "old observation": ((0.3, 0.0), {"observation_age": 0.2}),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_s8_without_a_usable_action_it_slows_down_to_a_hold_then_faults(reason):
    driven = moving(watchdog=0.2)
    wanted, ages = UNUSABLE[reason]
    start = driven.tick
    for _ in range(10):  # 0.2 s
        driven(*wanted, **ages)
    assert driven.governor.state is State.ACTIVE
    driven(*wanted, **ages)
    assert driven.governor.fault is Reason(reason)
    assert driven.governor.counts[Reason(reason)] == 11
    speeds = np.diff([q for q, _ in driven.sent[start - 2 :]]) / DT
    # From 0.5 rad/s, at 10 rad/s^2: slower with every tick, and at rest after 0.05 s and two ramps.
    assert speeds[0] == pytest.approx(0.5)
    assert (np.diff(speeds) <= 1e-12).all()
    assert speeds[1] < 0.5
    assert (speeds[6:] == 0).all()
    assert_within([(0.0, 0.0), *driven.sent], driven.governor.limits, DT)


def test_s8_there_is_no_jump_when_actions_come_again():
    driven = moving(watchdog=1.0)
    wanted = driven.sent[-1][0]
    for _ in range(20):
        wanted += 0.01
        driven()
    held = driven.sent[-1][0]
    while driven(wanted, 0.0)[0] != wanted:
        wanted += 0.001
        assert driven.tick < 200
    assert driven.governor.state is State.ACTIVE
    assert wanted > held + 0.1
    assert_within([(0.0, 0.0), *driven.sent], driven.governor.limits, DT)


def test_s8_a_clock_that_stands_or_goes_back_does_not_fool_the_watchdog():
    for step in (0.0, -3600.0):
        made = governor()
        made.arm(np.zeros(2))
        made(np.zeros(2), now=100.0, observed=100.0, asked=100.0)
        for k in range(11):
            made(None, now=100.0 + step * k, observed=100.0, asked=100.0)
        assert made.fault is Reason.STARVED


def test_s8_ticks_that_were_missed_count_for_the_watchdog():
    made = governor()
    made.arm(np.zeros(2))
    made(np.zeros(2), now=0.0, observed=0.0, asked=0.0)
    made(None, now=0.21, observed=0.21, asked=0.0)
    assert made.fault is Reason.STARVED


def test_before_the_first_action_a_policy_may_take_its_time():
    driven = Driven(governor(), pose=(0.1, 0.2))
    for _ in range(100):
        assert driven() == [0.1, 0.2]
    assert driven.governor.state is State.READY
    assert driven.governor.counts[Reason.STARVED] == 0


@pytest.mark.parametrize("ticks", [-1, 0, 1])
@pytest.mark.parametrize(
    ("what", "limit", "reason"),
    [
        ("action_age", "max_action_age", Reason.OLD_ACTION),
        ("observation_age", "max_observation_age", Reason.OLD_OBSERVATION),
    ],
)
def test_s9_what_is_a_tick_too_old_is_not_executed(what, limit, reason, ticks):
    changes = {"start": "approach", limit: 5 * DT}
    driven = Driven(governor(**changes))
    driven(0.0, 0.0)
    sent = driven(0.0005, 0.0, **{what: (5 + ticks) * DT})
    assert sent == ([0.0, 0.0] if ticks > 0 else [0.0005, 0.0])
    assert driven.governor.counts[reason] == (ticks > 0)


@pytest.mark.parametrize("age", [math.nan, INF, -INF, -3600.0, 3600.0])
@pytest.mark.parametrize("what", ["action_age", "observation_age"])
def test_s9_times_of_another_clock_are_not_executed(what, age):
    driven = Driven(governor())
    driven(0.0, 0.0)
    assert driven(0.0005, 0.0, **{what: age}) == [0.0, 0.0]


def test_s9_a_step_of_the_wall_clock_changes_nothing(monkeypatch):
    driven = Driven(governor())
    for step in (0.0, 3600.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda step=step: 1e9 + step)
        assert driven(0.0, 0.0) == [0.0, 0.0]
    assert not any(driven.governor.counts.values())


def test_s12_the_states_and_what_leads_from_one_to_the_next():
    made = governor()
    fresh = {"now": 0.0, "observed": 0.0, "asked": 0.0}
    assert made.state is State.DISARMED
    assert made(np.zeros(2), **fresh) is None
    with pytest.raises(RuntimeError, match="disarmed: there is no fault to reset"):
        made.reset()
    made.arm(np.zeros(2))
    assert made.state is State.READY
    with pytest.raises(RuntimeError, match=r"is ready, .* call disarm first"):
        made.arm(np.zeros(2))
    made(np.zeros(2), **fresh)
    assert made.state is State.ACTIVE
    with pytest.raises(RuntimeError, match="no fault to reset"):
        made.reset()
    made(np.full(2, math.nan), **fresh)
    assert made.state is State.FAULT
    made.disarm()
    assert made.state is State.FAULT
    assert made(np.zeros(2), **fresh) is None  # The driver holds by itself now.
    with pytest.raises(RuntimeError, match=r"is fault, .* call reset first"):
        made.arm(np.zeros(2))
    made.reset()
    assert (made.state, made.fault) == (State.DISARMED, None)
    made.arm(np.zeros(2))
    made.disarm()
    assert made.state is State.DISARMED


def test_s12_a_fault_cannot_be_reset_while_the_robot_is_being_braked():
    driven = moving()
    driven(math.nan, 0.0)
    with pytest.raises(RuntimeError, match="still being braked"):
        driven.governor.reset()
    while not driven.governor.is_at_rest:
        driven()
    driven.governor.reset()
    assert driven.governor.state is State.DISARMED


def test_s13_an_emergency_stop_from_another_thread_wins_by_the_next_tick():
    driven = moving()
    before = driven.sent[-1][0] - driven.sent[-2][0]
    stopper = threading.Thread(target=driven.governor.emergency_stop)
    stopper.start()
    stopper.join()
    assert driven.governor.state is State.FAULT  # At once, for all to see.
    driven(driven.sent[-1][0] + before, 0.0)
    assert driven.sent[-1][0] - driven.sent[-2][0] < before
    driven.governor.emergency_stop()  # Again changes nothing.
    while not driven.governor.is_at_rest:
        driven(0.5, 0.0)
    assert driven.governor.fault is Reason.EMERGENCY_STOP
    assert driven.governor.counts[Reason.EMERGENCY_STOP] == 1
    assert_within([(0.0, 0.0), *driven.sent], driven.governor.limits, DT)


@pytest.mark.parametrize("state", State)
def test_s13_an_emergency_stop_wins_in_every_state(state):
    made = governor()
    fresh = {"now": 0.0, "observed": 0.0, "asked": 0.0}
    if state is not State.DISARMED:
        made.arm(np.zeros(2))
    if state in (State.ACTIVE, State.FAULT):
        made(np.zeros(2), **fresh)
    if state is State.FAULT:
        made(np.full(2, math.nan), **fresh)
    assert made.state is state
    made.emergency_stop()
    made(np.zeros(2), **fresh)
    assert made.fault is Reason.EMERGENCY_STOP
    with pytest.raises(RuntimeError, match="reset first"):
        made.arm(np.zeros(2))
    made.reset()
    assert made.state is State.DISARMED


def test_changes_are_summed_up_to_positions_only_from_a_known_pose():
    field = Field(shape=(2,), kind="delta", low=(-0.02, 0), high=(0.02, 1), discrete=(1,))
    limits = {"low": (-0.1, 0), "high": (0.1, 1), "acceleration": 10.0, "jerk": 500.0}
    for pose, is_bounded in (((0.05, 0.0), True), (None, False)):
        driven = Driven(governor(field, limits=limits), pose=pose)
        for _ in range(50):
            driven(0.01, 1.0)
        way = sum(change for change, _ in driven.sent)
        assert (way <= 0.05 + 1e-12) == is_bounded
        assert driven()[1] == 1.0
        while not driven.governor.is_at_rest:
            driven()
        assert driven() == [0.0, 1.0]  # No change is a hold; the gripper stays.


def test_relative_actions_pass_unlimited_or_not_at_all():
    field = Field(shape=(2,), kind="relative", low=(-1, 0), high=(1, 1), discrete=(1,))
    with pytest.raises(ValueError, match="convert them to absolute ones"):
        governor(field)
    driven = Driven(governor(field, limits={}), pose=None)
    assert driven(0.9, 1.0) == [0.9, 1.0]
    assert driven(-1.5, 1.0) == [-1.0, 1.0]
    assert driven() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"watchdog": 0.0}, "watchdog is 0.0, it must be positive"),
        ({"max_action_age": math.nan}, "max_action_age is nan"),
        ({"max_observation_age": -1.0}, "max_observation_age is -1.0"),
        ({"max_clamped_ticks": 0}, "max_clamped_ticks is 0"),
        ({"pose_tolerance": -0.1}, "pose_tolerance is -0.1, it must be at least 0"),
        ({"start": "jump"}, "start is 'jump', choose 'refuse' or 'approach'"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        governor(**changes)


def test_limits_of_another_action_are_refused():
    with pytest.raises(ValueError, match="limits are of 2 elements, an action has 3"):
        Governor(Field(shape=(3,)), DT, Limits.of(ARM, DT), **SETTINGS)
