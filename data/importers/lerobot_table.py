"""Reads the parquet tables of a LeRobot data set in order, a batch of rows at a time.

Shape legend: `L` steps of an episode.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.importers.importer import ImporterError
from data.layout import in_dtype
from data.lerobot_layout import INDEX_DTYPES, Feature
from data.parquet import pyarrow
from data.picture_files import decoded_picture

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256  # read at once; a row may hold some pictures


def parquet_columns(
    path: Path, wanted: Sequence[str] | None = None, *, also: Sequence[str] = ()
) -> dict[str, list]:
    """Columns of a small table as Python values.

    Args:
        path: of the table.
        wanted: names of columns that must be there; None: all there are.
        also: names of columns that may be missing.

    Raises:
        ImporterError: it is no table, or lacks a column.
    """
    pa, pq = pyarrow()
    with _refused(path, pa), pq.ParquetFile(path, page_checksum_verification=True) as table:
        there = table.schema_arrow.names
        if missing := sorted(set(wanted or ()) - set(there)):
            raise ImporterError(
                f"{path} lacks the columns {missing}: copy or download the data set again"
            )
        names = list(there if wanted is None else wanted) + [n for n in also if n in there]
        read = table.read(columns=names, use_threads=False)
        return {name: read.column(name).to_pylist() for name in names}


def column_names(path: Path) -> list[str]:
    """Names of the columns of a table.

    Raises:
        ImporterError: it is no table.
    """
    pa, pq = pyarrow()
    with _refused(path, pa), pq.ParquetFile(path) as table:
        return list(table.schema_arrow.names)


class TableReader:
    """The rows of one table, read forward; close it after use.

    Args:
        path: of the table.
        features: columns to read.
    """

    def __init__(self, path: Path, features: Sequence[Feature]):
        self.path = path
        self._pa, pq = pyarrow()
        index = [Feature(key, dtype, (1,)) for key, dtype in INDEX_DTYPES.items()]
        self._features = [*features, *index]
        with _refused(path, self._pa):
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            self.n_rows = int(self._file.metadata.num_rows)
            self.columns = frozenset(self._file.schema_arrow.names)
            self._check_columns(self._file.schema_arrow)
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._rest: pa.RecordBatch | None = None  # read, but not yet asked for
        self._row = 0  # of the first row of the rest

    def _check_columns(self, schema: "pa.Schema") -> None:
        """Raise ImporterError where a column is missing, twice there, or of another type."""
        for feature in self._features:
            places = schema.get_all_field_indices(feature.key)
            if len(places) != 1:
                raise ImporterError(
                    f"{self.path} has {len(places)} columns {feature.key!r}, but info.json lists "
                    f"one: copy or download the data set again"
                )
            held = schema.field(places[0]).type
            if not _is_held(self._pa, held, feature):
                raise ImporterError(
                    f"{self.path}: column {feature.key!r} is {held}, which is not "
                    f"{feature.dtype} {list(feature.shape)}, as info.json says: leave it out with "
                    f"format.leave_out=[{feature.key}], or correct the data set"
                )

    def close(self) -> None:
        """Close the file."""
        self._batches = None
        self._file.close()

    def read(self, first: int, n_rows: int) -> dict[str, np.ndarray]:
        """Rows of all columns: key -> [L, ...].

        Raises:
            ImporterError: the table is shorter, damaged, or holds nothing where it must hold
                numbers or pictures.
        """
        if first + n_rows > self.n_rows:
            raise ImporterError(
                f"{self.path} has {self.n_rows} rows, the table of episodes wants "
                f"{first}..{first + n_rows - 1}: it is shorter than it says; copy or download the "
                f"data set again"
            )
        with _refused(self.path, self._pa):
            parts = list(self._batches_of(first, n_rows))
            return {feature.key: self._values(parts, feature) for feature in self._features}

    def _batches_of(self, first: int, n_rows: int) -> "Iterator[pa.RecordBatch]":
        if self._batches is None or first < self._row:
            self._start(first)
        while n_rows:
            assert self._batches is not None
            rest = self._rest if self._rest is not None else next(self._batches, None)
            if rest is None:
                raise ImporterError(f"{self.path} ends before its own count of rows: it is damaged")
            skipped = min(max(first - self._row, 0), rest.num_rows)
            taken = rest.slice(skipped, n_rows)
            left = rest.slice(skipped + taken.num_rows)
            self._row += skipped + taken.num_rows
            self._rest = left if left.num_rows else None
            first, n_rows = first + taken.num_rows, n_rows - taken.num_rows
            yield taken

    def _start(self, first: int) -> None:
        """Read on from the group of rows that holds row `first`."""
        n_before, group = 0, 0
        while group < self._file.metadata.num_row_groups - 1:
            n_rows = self._file.metadata.row_group(group).num_rows
            if n_before + n_rows > first:
                break
            n_before, group = n_before + n_rows, group + 1
        self._row, self._rest = n_before, None
        self._batches = self._file.iter_batches(
            batch_size=BATCH_ROWS,
            row_groups=list(range(group, self._file.metadata.num_row_groups)),
            columns=[feature.key for feature in self._features],
            use_threads=False,
        )

    def _values(self, parts: "list[pa.RecordBatch]", feature: Feature) -> np.ndarray:
        columns = [part.column(part.schema.get_field_index(feature.key)) for part in parts]
        if feature.dtype == "image":
            return np.concatenate([self._pictures(column, feature) for column in columns])
        return np.concatenate([self._numbers(column, feature) for column in columns])

    def _numbers(self, column: "pa.Array", feature: Feature) -> np.ndarray:
        n_rows = len(column)
        leaf = self._leaf(column, feature, feature.shape)
        stored = leaf.to_numpy(zero_copy_only=False)
        values, fits = in_dtype(stored, np.dtype(feature.dtype))
        if values.dtype.kind in "iu" and not fits.all():
            raise ImporterError(
                f"{self.path}: column {feature.key!r} holds numbers that {feature.dtype} cannot: "
                f"correct its dtype in info.json"
            )
        return values.reshape(n_rows, *feature.shape)

    def _leaf(self, column: "pa.Array", feature: Feature, shape: tuple[int, ...]) -> "pa.Array":
        """All numbers of a nested column, where every list is as long as the shape says."""
        pa = self._pa
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if column.null_count:
            raise ImporterError(
                f"{self.path}: column {feature.key!r} has empty steps: correct the data set"
            )
        if not _is_list(pa, column.type):
            return column
        lengths = set(pa.compute.unique(pa.compute.list_value_length(column)).to_pylist())
        if lengths - {shape[0]}:
            raise ImporterError(
                f"{self.path}: steps of column {feature.key!r} have {sorted(lengths)} elements, "
                f"info.json says shape {list(feature.shape)}: correct the data set"
            )
        return self._leaf(column.flatten(), feature, shape[1:])

    def _pictures(self, column: "pa.Array", feature: Feature) -> np.ndarray:
        shape = feature.picture_shape
        values = column
        if self._pa.types.is_struct(column.type):
            values = column.field("bytes")
        if column.null_count or values.null_count:
            raise ImporterError(
                f"{self.path}: column {feature.key!r} has steps whose picture is not in the table "
                f"(but in a file beside it, or nowhere): save the data set with the pictures in it"
            )
        pictures = np.empty((len(column), *shape), np.uint8)
        for place, value in enumerate(values):
            try:
                pictures[place] = decoded_picture(value.as_buffer(), shape)
            except ValueError as error:
                raise ImporterError(
                    f"{self.path}: a picture of column {feature.key!r} {error}: copy or download "
                    f"the data set again"
                ) from error
        return pictures


@contextmanager
def _refused(path: Path, pa: Any) -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into an ImporterError."""
    # A damaged table also asks for absurd amounts of memory, or holds text that is none.
    kinds = (pa.ArrowException, OSError, ValueError, MemoryError, KeyError, TypeError)
    try:
        yield
    except ImporterError:
        raise
    except kinds as error:
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise ImporterError(
            f"{path} is damaged, or not a parquet table ({reason}): copy or download the data "
            f"set again"
        ) from error


def _is_list(pa: Any, held: "pa.DataType") -> bool:
    kinds = pa.types
    return kinds.is_list(held) or kinds.is_large_list(held) or kinds.is_fixed_size_list(held)


def _is_held(pa: Any, held: "pa.DataType", feature: Feature) -> bool:
    """Whether a column of this type can be the feature."""
    if isinstance(held, pa.BaseExtensionType):
        held = held.storage_type
    if feature.dtype == "image":
        if pa.types.is_struct(held):
            place = held.get_field_index("bytes")
            return place >= 0 and _is_bytes(pa, held.field(place).type)
        return _is_bytes(pa, held)
    depth = 0
    while _is_list(pa, held):
        if isinstance(held, pa.FixedSizeListType) and (
            depth >= len(feature.shape) or held.list_size != feature.shape[depth]
        ):
            return False
        held, depth = held.value_type, depth + 1
    if depth != len(feature.shape) and not (depth == 0 and feature.shape == (1,)):
        return False
    kind = np.dtype(feature.dtype).kind
    if pa.types.is_boolean(held) or kind == "b":
        return pa.types.is_boolean(held) and kind == "b"
    if pa.types.is_floating(held):
        return kind == "f"
    return pa.types.is_integer(held) and kind in "iu"


def _is_bytes(pa: Any, held: "pa.DataType") -> bool:
    return pa.types.is_binary(held) or pa.types.is_large_binary(held)
