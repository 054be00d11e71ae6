"""The receding-horizon loop: observe, plan, command, at the robot's rate.

The control thread keeps the time of the robot and does nothing else: it reads what is there, leaves
a request where one is due, fetches a reply if there is one, and commands the action that the plan
has for the present tick. Inference runs beside it (`policy.control.inference`). Tick k is due at
`start + k * control_dt`; a tick that ended before the loop got to it is counted as missed, and what
is sent next is always the action for the present tick.

    tick      0   1   2   3   4   5   6   7   8        Ta = 4, a chunk takes 2 ticks
    observed  o0  o1  o2  o3  o4  o5  o6  o7  o8
    asked     A               B               C
    executed  a0  a1  a2  a3  a4  a5  b6  b7  b8       a4 and a5 were decided when B was asked for

The first chunk is waited for while the robot stands still, and tick 0 begins when it is there. With
`patience` the loop waits for a reply within a tick, so that a policy faster than that loses none.

Safe actions: the plan does not reach the present tick -> as `starvation` says; an action is not
finite -> the chunk is refused and the loop ends with an error; no plan comes -> asked again; any
error or Ctrl-C -> the robot is brought to rest and stopped.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from data.types import Horizons, Observation
from policy.control.clock import Clock
from policy.control.delay import DelayEstimate
from policy.control.governed import Governed
from policy.control.history import History
from policy.control.inference import Inference, Reply
from policy.control.latency import TimingLog
from policy.control.manner import Manner
from policy.control.plan import Plan, Step, UnsafeActionError
from policy.control.stall import NoStalls, Stalls
from policy.control.ticks import Ticks
from policy.types import PlannerError, Request

LOOK = 0.05  # Between two looks at whether anything has changed, while the first plan is made [s].
MAX_USELESS = 5  # Chunks in a row of which nothing was left when they came.


class OverrunError(RuntimeError):
    """The computer cannot keep up with the robot."""


def control_loop(
    robot: Governed,
    inference: Inference,
    *,
    clock: Clock,
    horizons: Horizons,
    manner: Manner,
    delay: DelayEstimate,
    n_ticks: int,
    log: TimingLog,
    epoch: int = 0,
    seed: int = 0,
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Control `robot` for one episode.

    Args:
        robot: commanded once a control tick; armed.
        inference: asked for a new chunk whenever `horizons.action` ticks have passed since the
            last time and nothing is pending.
        clock: of the robot and of `inference`.
        horizons: observations the policy sees, and ticks it is to be asked after.
        manner: how a delay is dealt with.
        delay: how many ticks to reckon with; learns from this episode.
        n_ticks: the episode ends after so many control ticks, missed ones included.
        log: takes in the timing.
        epoch: number of the episode; what is pending of an earlier one is dropped.
        seed: of the policy's noise.
        is_over: asked at every tick, after reading, whether the episode has ended; whoever wants
            the loop to end in good order (Ctrl-C) says so here.

    Returns:
        Control ticks that passed; fewer than there were to be where the governor is in a fault.

    Raises:
        UnsafeActionError: the policy gave an action that is not finite or of a wrong shape.
        PlannerError: there is no first plan.
        OverrunError: more ticks in a row were missed than may be, or chunks come after their end.
    """
    loop = _Loop(
        robot,
        inference,
        clock=clock,
        horizons=horizons,
        manner=manner,
        delay=delay,
        log=log,
        epoch=epoch,
        seed=seed,
    )
    log.start_episode()
    try:
        return loop.run(n_ticks, is_over) if loop.wait_for_first_plan(is_over) else 0
    finally:
        try:
            loop.come_to_rest()
        finally:
            robot.stop()


class _Wake(NamedTuple):
    """When a tick was due and begun, and what was kept from control until it was looked at [s]."""

    due: float
    woken: float
    looked: float
    kept: float


class _Loop:
    """What the control thread knows of an episode."""

    def __init__(
        self,
        robot: Governed,
        inference: Inference,
        *,
        clock: Clock,
        horizons: Horizons,
        manner: Manner,
        delay: DelayEstimate,
        log: TimingLog,
        epoch: int,
        seed: int,
    ):
        self._robot, self._inference, self._clock = robot, inference, clock
        self._horizons, self._manner, self._delay, self._log = horizons, manner, delay, log
        self._epoch, self._seed = epoch, seed
        action = robot.contract.action
        self._plan = Plan(action, seam=manner.seam)
        log.course.start(self._plan)
        self._scale = _jump_scale(action.low, action.high, n=action.size)
        self._scale[list(action.discrete)] = 0
        self._history = History(horizons.obs)
        self._next_request = 0  # tick at which the next chunk is asked for
        self._observed = 0.0  # capture time of what the pending request saw [s]
        self._sent: tuple[int, np.ndarray] | None = None
        self._n_late = self._n_useless = 0  # chunks in a row: later than reckoned, than their end
        self._ticks = Ticks(clock, control_dt=robot.contract.control_dt)
        self._stalls: Stalls = NoStalls()

    def wait_for_first_plan(self, is_over: Callable[[], bool]) -> bool:
        """Ask for the chunk of tick 0 and merge it; the robot stands still meanwhile.

        Returns:
            Whether there is a plan; none where the episode was over, or stopped, before.
        """
        observation = self._robot.read()
        first = History(self._horizons.obs)
        first.add(0, observation.fields)
        self._ask(0, first, observation)
        end = self._clock.now() + self._manner.start_timeout
        while (reply := self._inference.reply(min(end, self._clock.now() + LOOK))) is None:
            if is_over() or self._robot.fault is not None:
                return False
            if self._clock.now() >= end:
                raise PlannerError(
                    f"no plan within {self._manner.start_timeout:g} s: is the policy still "
                    f"loading? Give more time with seam.manner.start_timeout"
                )
        if reply.error is not None:
            raise reply.error
        self._log.add_latency(reply.answered - reply.asked)
        self._merge(reply, tick=0)
        return True

    def run(self, n_ticks: int, is_over: Callable[[], bool]) -> int:
        """Control until the end of the episode; returns the ticks that passed."""
        ticks = self._ticks = Ticks(self._clock, control_dt=self._ticks.dt)
        stalls = self._stalls = self._clock.stalls()
        next_tick = 0
        while True:
            due, idle = ticks.due(next_tick), self._clock.now()
            self._clock.sleep_until(due)
            woken = self._clock.now()
            kept = stalls.asleep(woken - max(due, idle))
            tick = ticks.present(next_tick)  # Later if something kept us from waking up.
            observation = self._robot.read()
            if tick >= n_ticks or is_over():
                n_missed = min(tick, n_ticks) - next_tick
                self._log.add_missed(n_missed, passed=woken - due, kept=kept)
                return min(tick, n_ticks)
            self._history.add(tick, observation.fields)
            self._fetch(tick, deadline=ticks.due(tick))
            if tick >= self._next_request and self._inference.pending is None:
                self._ask(tick, self._history, observation)
                self._fetch(tick, deadline=ticks.due(tick + self._manner.patience))
            tick = ticks.present(tick)  # Later if we waited for longer than we meant to.
            now = self._clock.now()
            kept += stalls.awake(now - woken)
            self._log.add_missed(min(tick, n_ticks) - next_tick, passed=now - due, kept=kept)
            self._check_overrun(tick - next_tick)
            is_stopped = self._robot.fault is not None  # Before the governor acts on it.
            if tick < n_ticks:
                self._command(tick, observation, _Wake(ticks.due(tick), woken, now, kept))
            if is_stopped and self._robot.governor.is_at_rest:
                return tick + 1
            next_tick = min(tick + 1, n_ticks)

    def _check_overrun(self, n_missed: int) -> None:
        if n_missed > self._manner.max_missed:
            raise OverrunError(
                f"{n_missed} control ticks in a row were missed, at most {self._manner.max_missed} "
                f"may be: is the computer busy with something else? Free it, lower the control "
                f"rate, or give seam.manner.max_missed={n_missed}"
            )

    def come_to_rest(self) -> None:
        """Brake within the limits, where there are any, for as many ticks as that takes."""
        governor = self._robot.governor
        if self._sent is None or not governor.limits.limits_motion:
            return
        tick = self._ticks.present(self._sent[0] + 1)
        while not governor.is_at_rest:
            self._clock.sleep_until(self._ticks.due(tick))
            self._robot.brake(tick=tick)
            tick = self._ticks.present(tick + 1)

    def _ask(self, tick: int, history: History, observation: Observation) -> None:
        longest = self._horizons.future - self._horizons.action
        # Where the robot holds until a chunk is there, nothing of it is decided before.
        delay = 0 if self._manner.is_synchronous else min(self._delay.ticks, longest)
        self._next_request = tick + self._horizons.action
        self._observed = observation.capture_time
        self._inference.ask(
            Request(
                history=history.stacked(),
                tick=tick,
                epoch=self._epoch,
                seed=self._seed,
                delay=delay,
                is_urgent=self._is_urgent,
                decided=self._decided(tick, delay),
            )
        )

    def _decided(self, tick: int, delay: int) -> np.ndarray | None:
        """[1 + delay, Da] the last command, and what is executed while a chunk is made."""
        if self._sent is None or self._sent[0] != tick - 1:
            return None
        steps = [self._plan.step(tick + i) for i in range(delay)]
        planned = [step.action for step in steps if step is not None]
        return np.stack([self._sent[1], *planned]) if len(planned) == delay else None

    def _fetch(self, tick: int, *, deadline: float) -> None:
        """Take the reply to what is pending, if it comes before `deadline` [s]."""
        reply = self._inference.reply(deadline)
        if reply is not None:
            self._take(reply, tick=self._ticks.present(tick))

    @property
    def _is_urgent(self) -> bool:
        limit = self._manner.urgent_after
        return limit is not None and self._n_late >= limit

    def _take(self, reply: Reply, *, tick: int) -> None:
        """Merge a reply's chunk, or have it asked for again at the next tick."""
        request = reply.request
        self._log.add_latency(reply.answered - reply.asked)
        if isinstance(reply.error, PlannerError):
            self._log.n_failed += 1
            self._next_request = tick + 1
            return
        if reply.error is not None:
            raise reply.error
        is_late = tick - request.tick > request.delay
        self._n_late = self._n_late + 1 if is_late else 0
        self._delay.add(tick - request.tick)
        self._log.add_delay(tick - request.tick, reckoned=request.delay)
        self._merge(reply, tick=tick)

    def _merge(self, reply: Reply, *, tick: int) -> None:
        chunk, decided = reply.chunk, reply.request.delay
        assert chunk is not None
        if self._manner.is_synchronous:  # Nothing of it was consumed: the robot held meanwhile.
            chunk = replace(chunk, tick0=tick)
            self._next_request = tick + self._horizons.action
        try:
            swap = self._plan.merge(chunk, tick=tick, observed=self._observed, decided=decided)
        except UnsafeActionError:
            self._log.n_unsafe += 1
            raise
        is_useless = swap.tick >= chunk.tick0 + len(chunk.actions)
        self._n_useless = self._n_useless + 1 if is_useless else 0
        if self._n_useless > MAX_USELESS:
            raise OverrunError(
                f"{self._n_useless} chunks in a row came after their end, the last one "
                f"{tick - chunk.tick0} ticks after it was asked for, and it has "
                f"{len(chunk.actions)} actions: use fewer denoiser calls or a faster network"
            )

    def _command(self, tick: int, observation: Observation, wake: _Wake) -> None:
        step = self._planned(tick)
        self._log.n_held += step is None
        wanted = None if step is None else step.action
        asked = observation.capture_time if step is None else step.observed
        sent = self._robot.send(wanted, tick=tick, now=self._clock.now(), asked=asked)
        now = self._clock.now()
        if sent is None:  # It stands still by itself: nothing was ever commanded.
            self._log.n_missed += 1
            return
        kept = wake.kept + self._stalls.awake(now - wake.looked)
        self._log.add_command(time=now, due=wake.due, woken=wake.woken, kept=kept)
        if step is not None:
            self._log.ages.add(now - step.observed)
        is_seam = step is not None and step.is_seam
        if self._sent is not None and self._sent[0] == tick - 1:
            self._log.add_jump(
                float(np.sqrt(np.mean((self._scale * (sent - self._sent[1])) ** 2))),
                is_seam=is_seam,
            )
        self._log.course.add(tick, sent, is_seam=is_seam)
        self._sent = tick, sent

    def _planned(self, tick: int) -> Step | None:
        """What the plan has for `tick`, as far as it may be executed."""
        pending = self._inference.pending
        is_overdue = pending is not None and tick >= pending.tick + pending.delay
        if is_overdue and self._manner.starvation != "finish":
            return None
        return self._plan.step(tick)


def _jump_scale(
    low: tuple[float, ...] | None, high: tuple[float, ...] | None, *, n: int
) -> np.ndarray:
    """[n] what makes a share of an element's range of it; 1 where that is not known."""
    if low is None or high is None:
        return np.ones(n)
    width = np.subtract(high, low)
    return np.where(np.isfinite(width) & (width > 0), 1 / np.where(width > 0, width, 1), 1.0)
