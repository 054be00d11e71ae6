"""The receding-horizon loop: observe, plan, command, at the robot's rate.

Synchronous: the loop waits for the policy. Tick k is due at `start + k * control_dt`. When a call
of the policy lasts longer than its tick, the ticks that ended meanwhile are counted as missed and
the robot keeps its last command; what is sent next is always the action for the present tick.

Safe actions: the plan does not reach the present tick -> hold; an action is not finite -> the chunk
is refused and the loop stops with an error; any error or Ctrl-C -> `robot.stop()`.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from data.types import Horizons
from policy.control.clock import Clock
from policy.control.latency import TimingLog
from policy.control.plan import Plan, UnsafeActionError, hold
from policy.types import ActionChunk, Robot

# A deadline reached by adding floats may be short of itself by rounding; in ticks.
ROUNDING = 1e-6


class Policy(Protocol):
    """Plans from what was seen."""

    def __call__(self, history: Mapping[str, np.ndarray], tick: int) -> ActionChunk:
        """A chunk whose first action is for control tick `tick`.

        Args:
            history: field name -> [To, ...], the last one seen at `tick`.
            tick: the present control tick.
        """
        ...


class History:
    """The last To observations, one a control tick.

    The first observation stands for those before it, and the last one seen for a missed tick.

    Args:
        length: To.
    """

    def __init__(self, length: int):
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=length)
        self._tick: int | None = None

    def add(self, tick: int, fields: Mapping[str, np.ndarray]) -> None:
        """Take in what was seen at `tick`, which is later than all before."""
        newest = {name: np.array(value) for name, value in fields.items()}
        length = self._seen.maxlen or 0
        if self._tick is None:
            self._seen.extend([newest] * (length - 1))
        else:
            missed = tick - self._tick - 1
            self._seen.extend([self._seen[-1]] * min(missed, length))
        self._seen.append(newest)
        self._tick = tick

    def stacked(self) -> dict[str, np.ndarray]:
        """Field name -> [To, ...]."""
        return {name: np.stack([seen[name] for seen in self._seen]) for name in self._seen[-1]}


def control_loop(
    robot: Robot,
    policy: Policy,
    *,
    clock: Clock,
    horizons: Horizons,
    n_ticks: int,
    log: TimingLog,
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Control `robot` for one episode.

    Args:
        robot: commanded once a control tick.
        policy: asked for a new chunk whenever `horizons.action` ticks of the last are consumed.
        clock: the robot's clock.
        horizons: observations the policy sees, and ticks it is to be asked after.
        n_ticks: the episode ends after so many control ticks, missed ones included.
        log: takes in the timing.
        is_over: asked at every tick, after reading, whether the episode has ended.

    Returns:
        Control ticks that passed.

    Raises:
        UnsafeActionError: the policy gave an action that is not finite or of a wrong shape.
    """
    plan, history = Plan(robot.contract.action), History(horizons.obs)
    sender = _Sender(robot, log)
    log.start_episode()
    ticks = _Ticks(clock, start=clock.now(), control_dt=robot.contract.control_dt)
    next_tick = 0
    try:
        while True:
            clock.sleep_until(ticks.due(next_tick))
            tick = ticks.present(next_tick)  # Later if something kept us from waking up.
            observation = robot.read()
            if tick >= n_ticks or is_over():
                log.n_missed += min(tick, n_ticks) - next_tick
                return min(tick, n_ticks)
            history.add(tick, observation.fields)
            consumed = plan.consumed(tick)
            if consumed is None or consumed >= horizons.action:
                _replan(plan, policy, history, tick, clock=clock, log=log)

            tick = ticks.present(tick)  # Time passed while the policy was thinking.
            log.n_missed += min(tick, n_ticks) - next_tick
            if tick < n_ticks:
                if sender.send(plan.action(tick), tick):
                    log.add_command(time=clock.now(), due=ticks.due(tick))
                else:
                    log.n_missed += 1
            next_tick = min(tick + 1, n_ticks)
    finally:
        robot.stop()


class _Ticks:
    """Control ticks on a clock: tick k begins at `start + k * control_dt`."""

    def __init__(self, clock: Clock, *, start: float, control_dt: float):
        self._clock, self._start, self._dt = clock, start, control_dt

    def due(self, tick: int) -> float:
        return self._start + tick * self._dt

    def present(self, at_least: int) -> int:
        elapsed = (self._clock.now() - self._start) / self._dt
        return max(at_least, math.floor(elapsed + ROUNDING))


class _Sender:
    """Sends planned actions; holds the last one where there is none."""

    def __init__(self, robot: Robot, log: TimingLog):
        self._robot, self._log = robot, log
        self._last: np.ndarray | None = None

    def send(self, planned: np.ndarray | None, tick: int) -> bool:
        """Whether something was sent; not, where there is nothing to hold yet."""
        if planned is None:
            if self._last is None:  # The robot stands still by itself.
                return False
            self._log.n_held += 1
            planned = hold(self._last, self._robot.contract.action)
        self._robot.command(planned, tick)
        self._last = planned
        return True


def _replan(
    plan: Plan, policy: Policy, history: History, tick: int, *, clock: Clock, log: TimingLog
) -> None:
    """Ask the policy for a chunk, measure how long it took, and merge it if it is safe."""
    asked = clock.now()
    chunk = policy(history.stacked(), tick)
    log.add_latency(clock.now() - asked)
    try:
        plan.merge(chunk)
    except UnsafeActionError:
        log.n_unsafe += 1
        raise
