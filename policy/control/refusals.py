"""Why wanted actions were not sent as they were: counted, remembered, and logged now and then."""

import enum
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

logger = logging.getLogger(__name__)

N_EVENTS = 1000  # Refusals that are remembered.


class Reason(enum.Enum):
    """Why a wanted action was not sent as it was."""

    POSITION = "position"
    VELOCITY = "velocity"
    ACCELERATION = "acceleration"
    JERK = "jerk"
    NOT_FINITE = "not finite"
    WRONG_SHAPE = "wrong shape"
    START_POSE = "not at the start pose"
    OLD_ACTION = "old action"
    OLD_OBSERVATION = "old observation"
    STARVED = "starved"
    CLAMPED_TOO_LONG = "clamped too long"
    EMERGENCY_STOP = "emergency stop"


@dataclass(frozen=True)
class Event:
    """One refusal.

    Args:
        tick: calls of the governor before the one that it happened in.
        reason: why.
        element: of the action; None if it is about the whole of it.
        wanted: the element's wanted number.
        sent: the element's number that was sent instead.
    """

    tick: int
    reason: Reason
    element: int | None = None
    wanted: float | None = None
    sent: float | None = None

    def __str__(self) -> str:
        """For a log."""
        where = "" if self.element is None else f", element {self.element}"
        what = "" if self.wanted is None else f": wanted {self.wanted:g}, sent {self.sent:g}"
        return f"tick {self.tick}: {self.reason.value}{where}{what}"


class Refusals:
    """What was refused.

    Args:
        log_ticks: fewest ticks between two warnings about the same reason; faults are always
            logged.
    """

    def __init__(self, log_ticks: int):
        self._log_ticks = log_ticks
        self._counts = dict.fromkeys(Reason, 0)
        self._events: deque[Event] = deque(maxlen=N_EVENTS)
        self._logged: dict[Reason, tuple[int, int]] = {}  # Tick and count at the last line.

    @property
    def counts(self) -> Mapping[Reason, int]:
        """How often each reason was met."""
        return MappingProxyType(self._counts)

    @property
    def events(self) -> tuple[Event, ...]:
        """The last refusals, oldest first."""
        return tuple(self._events)

    def add(self, event: Event) -> None:
        """Count and remember a refusal; log it unless its reason was logged just before."""
        self._keep(event)
        reason = event.reason
        count = self._counts[reason]
        tick, logged = self._logged.get(reason, (-self._log_ticks, 0))
        if event.tick - tick >= self._log_ticks:
            unlogged = count - logged - 1
            more = f" ({unlogged} more since the last line)" if unlogged else ""
            logger.warning("%s%s", event, more)
            self._logged[reason] = event.tick, count

    def add_fault(self, event: Event) -> None:
        """Count, remember and log what led to a fault."""
        self._keep(event)
        logger.error("fault, braking to a hold: %s", event)

    def _keep(self, event: Event) -> None:
        self._counts[event.reason] += 1
        self._events.append(event)
