"""Writes parquet files of limited size, with a checksum for every page.

Shape legend: `L` steps of an episode.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.lerobot_layout import Feature
from data.parquet import pyarrow
from data.picture_files import encoded_picture

if TYPE_CHECKING:
    import pyarrow as pa

FILES_PER_CHUNK = 1000
PNG_LEVEL = 4  # of 9; more costs time and saves little
MEGABYTE = 1024**2


class FileNumber:
    """Number of the file that is written to, and of the folder it is in."""

    def __init__(self):
        self.chunk_index = 0
        self.file_index = 0

    def advance(self) -> None:
        """Go to the next file."""
        self.file_index += 1
        if self.file_index == FILES_PER_CHUNK:
            self.chunk_index, self.file_index = self.chunk_index + 1, 0

    def entries(self, of: str) -> dict[str, int]:
        """What a table of episodes says of it, such as data/chunk_index."""
        return {f"{of}/chunk_index": self.chunk_index, f"{of}/file_index": self.file_index}

    def path(self, root: Path, template: str, **names: str) -> Path:
        """The file's path."""
        numbers = {"chunk_index": self.chunk_index, "file_index": self.file_index}
        return root / template.format(**numbers, **names)


class TableWriter:
    """Rows in files `template` under `root`; close it to make them complete.

    Args:
        root: of the data set.
        template: of the files' paths.
        max_mb: size that a file should not pass.
    """

    def __init__(self, root: Path, template: str, *, max_mb: float):
        self.number = FileNumber()
        self._root, self._template, self._max_bytes = root, template, max_mb * MEGABYTE
        self._writer: Any = None
        self._path = root
        self._largest = 0  # group of rows so far [bytes]

    def make_room(self) -> None:
        """Begin another file where the next rows might not fit into the present one."""
        if self._writer is None:
            return
        if self._path.stat().st_size + self._largest > self._max_bytes:
            self.close()
            self.number.advance()

    def write(self, table: "pa.Table") -> None:
        """Add rows as one group."""
        _, pq = pyarrow()
        if self._writer is None:
            self._path = self.number.path(self._root, self._template)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(
                self._path, table.schema, compression="snappy", write_page_checksum=True
            )
        before = self._path.stat().st_size
        self._writer.write_table(table)
        self._largest = max(self._largest, self._path.stat().st_size - before)

    def close(self) -> None:
        """Write the end of the present file."""
        writer, self._writer, self._largest = self._writer, None, 0
        if writer is not None:
            writer.close()


def steps_table(features: Mapping[str, Feature], rows: Mapping[str, np.ndarray]) -> "pa.Table":
    """The rows of an episode as LeRobot has them.

    Args:
        features: key -> column, pictures included and videos not.
        rows: key -> [L, ...].
    """
    pa, _ = pyarrow()
    columns = {key: _column(pa, feature, rows[key]) for key, feature in features.items()}
    hub = {key: _hub_type(feature) for key, feature in features.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": hub}})}
    return pa.table(columns).replace_schema_metadata(metadata)


def _column(pa: Any, feature: Feature, values: np.ndarray) -> "pa.Array":
    if feature.dtype == "image":
        encoded = pa.array([encoded_picture(v, level=PNG_LEVEL) for v in values], pa.binary())
        paths = pa.array([f"frame-{step:06d}.png" for step in range(len(values))], pa.string())
        return pa.StructArray.from_arrays([encoded, paths], ["bytes", "path"])
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    if feature.shape == (1,):
        return column
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(column, feature.shape[0])
    # Lists of lists, as Hugging Face's Array2D and so on are stored.
    for size in reversed(feature.shape):
        ends = np.arange(0, len(column) + 1, size, dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(ends), column)
    return column


def _hub_type(feature: Feature) -> dict[str, Any]:
    """The column's type in Hugging Face's words, which its viewer needs to show pictures."""
    if feature.dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": "Sequence"}
    return {
        "shape": list(feature.shape),
        "dtype": feature.dtype,
        "_type": f"Array{len(feature.shape)}D",
    }


def episodes_table(rows: list[dict[str, Any]]) -> "pa.Table":
    """Rows of the table of episodes: numbers, lists of words, and arrays of statistics."""
    pa, _ = pyarrow()
    columns = {}
    for key, first in rows[0].items():
        if not isinstance(first, np.ndarray):
            columns[key] = pa.array([row[key] for row in rows])
            continue
        kind = pa.from_numpy_dtype(np.float64 if first.dtype.kind == "f" else first.dtype)
        for _ in first.shape:
            kind = pa.list_(kind)
        columns[key] = pa.array([row[key].tolist() for row in rows], kind)
    return pa.table(columns)


def tasks_table(tasks: list[str]) -> "pa.Table":
    """The tasks as a pandas table has them whose index are their words."""
    pa, _ = pyarrow()
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    number = {
        "name": "task_index",
        "field_name": "task_index",
        "pandas_type": "int64",
        "numpy_type": "int64",
    }
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**number, "metadata": None}, {**index, "metadata": None}],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": np.arange(len(tasks)), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
