"""Progress bars with rate and remaining time."""

import sys

from tqdm import tqdm

QUIET_INTERVAL = 15.0  # [s] between lines where nobody watches, such as a log file


def progress_bar(
    *,
    total: float | None = None,
    unit: str,
    description: str | None = None,
    initial: int = 0,
    is_hidden: bool = False,
) -> tqdm:
    """A bar on stderr; redrawn rarely where stderr is not a terminal.

    Args:
        total: of units, None while unknown.
        unit: what is counted.
        description: in front of the bar.
        initial: units done before.
        is_hidden: draw nothing.
    """
    is_there = sys.stderr is not None  # It may be closed.
    interval = 0.1 if is_there and sys.stderr.isatty() else QUIET_INTERVAL
    return tqdm(
        total=total,
        unit=unit,
        desc=description,
        initial=initial,
        disable=is_hidden or not is_there,
        mininterval=interval,
        maxinterval=max(interval, 10.0),
        dynamic_ncols=True,
    )
