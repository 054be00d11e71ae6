"""pyarrow, which is only needed for data sets with parquet tables."""

from typing import Any


def pyarrow() -> tuple[Any, Any]:
    """The library and its parquet part.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"LeRobot data sets need pyarrow ({error}): install it with pip install -e '.[lerobot]'"
        ) from error
    return pa, pq
