"""What can go wrong between a client and a server, by name."""

from enum import StrEnum

from policy.types import PlannerError

# Texts that cross the wire or quote a peer are cut to so many characters.
MAX_TEXT = 400


class Code(StrEnum):
    """Why something was refused; part of the protocol, so names are never reused."""

    BAD_FRAME = "bad_frame"  # Bytes that are no frame; the connection is closed.
    BAD_MESSAGE = "bad_message"  # A frame that is no message, or not in this place.
    UNAUTHORIZED = "unauthorized"  # No token, or a wrong one.
    MISMATCH = "mismatch"  # The two contracts do not mean the same numbers.
    LEASE_HELD = "lease_held"  # Another client controls.
    LEASE_LOST = "lease_lost"  # Another client has taken over.
    NOT_READY = "not_ready"  # The planner warms up, or has failed for good.
    BAD_OBSERVATION = "bad_observation"  # Not the fields, shapes or types of the contract.
    NOT_FINITE = "not_finite"  # A number in an observation or an action is NaN or infinite.
    STALE = "stale"  # A request of an epoch that is over, or of a tick before the last one.
    SUPERSEDED = "superseded"  # A newer request came before this one's turn.
    EXPIRED = "expired"  # Its deadline passed before its turn.
    INTERNAL = "internal"  # The planner failed; the server's log has the incident.


class WireError(ValueError):
    """Bytes that are no valid message.

    Args:
        code: why.
        text: what was found, the limit and the mend.
    """

    def __init__(self, code: Code, text: str):
        super().__init__(shortened(text))
        self.code = code


class ServingError(PlannerError):
    """No plan came from the server; the robot holds."""


class ServerError(ServingError):
    """The server refused.

    Args:
        code: why.
        text: the server's words.
    """

    def __init__(self, code: Code, text: str):
        super().__init__(f"the server refused ({code}): {text}")
        self.code = code


class DeadlineError(ServingError):
    """No answer came in time."""


class ConnectionLostError(ServingError):
    """There is no connection to the server, or it broke while an answer was awaited."""


def shortened(text: str) -> str:
    """A text for a peer or a log: at most `MAX_TEXT` characters, on one line."""
    printable = "".join(c if c.isprintable() else "?" for c in text[: MAX_TEXT + 1])
    return printable if len(printable) <= MAX_TEXT else printable[: MAX_TEXT - 3] + "..."
