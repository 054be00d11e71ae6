"""A folder with a file per episode, npz or csv, in the order of the numbers in their names.

An npz holds an array [L, ...] per field, and may hold single numbers that are worth knowing of the
episode, such as `success` or `seed`. A csv has a line of column names; columns `state_0, state_1`
(or `state.0`, `state[0]`) together are the array `state`, and `columns` names others:
format.columns.state=[x,y]. The action is called `action` or `actions`.

Shape legend: `L` steps of an episode.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.importers.archive import NpzRows, check_sums, npz_arrays, open_zip
from data.importers.arrays import ArraySpec, Selection, plain
from data.importers.importer import ImportedEpisode, ImporterError
from data.types import Contract, ContractError

SUFFIXES = (".npz", ".csv")
CSV_BYTES = 64 * 1024**2  # as text; many times as much in memory
NUMBERED = re.compile(r"(.+?)(?:_|\.|\[)(\d{1,6})\]?")
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*|\s*[+-]?(nan|inf)\s*", re.I)


class Folder:
    """A folder of episodes.

    Args:
        path: of the folder.
        fields: field name -> entries of `Field` that the user tells.
        take: which of the arrays become fields; None: all.
        control_dt: time between two steps [s], which the files do not say.
        task: what is done, in words.
        columns: array name -> columns of a csv that it is made of.

    Raises:
        ImporterError: the files cannot be read.
        ContractError: something must be told.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fields: Mapping[str, Mapping] | None = None,
        take: Mapping[str, object] | Sequence[str] | None = None,
        control_dt: float | None = None,
        task: str = "",
        columns: Mapping[str, Sequence[str]] | None = None,
    ):
        self.path = Path(path)
        self._columns = {str(k): [str(c) for c in v] for k, v in (columns or {}).items()}
        self._files = _episode_files(self.path)
        arrays, self._single = self._look(self._files[0])
        action = "actions" if "actions" in arrays and "action" not in arrays else "action"
        self._selection = Selection.of(
            self.path,
            arrays,
            take=take,
            told=fields,
            control_dt=control_dt,
            task=task,
            action=action,
        )

    @property
    def contract(self) -> Contract:
        """Meaning of the fields."""
        return self._selection.contract

    @property
    def n_episodes(self) -> int:
        """Number of files."""
        return len(self._files)

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Episodes from number `first` on, in the order of the numbers in their names."""
        for file in self._files[first:]:
            yield self._from_npz(file) if _kind(file) == ".npz" else self._from_csv(file)

    def _look(self, file: Path) -> tuple[dict[str, ArraySpec], list[str]]:
        """What the arrays of the first file are, and the names of its single numbers."""
        if _kind(file) == ".csv":
            arrays = self._csv_arrays(file)
            return {k: ArraySpec(v.shape[1:], v.dtype) for k, v in arrays.items()}, []
        with open_zip(file) as archive:
            found = npz_arrays(file, archive)
            single = [name for name, array in found.items() if array.is_single]
        return {k: a.spec for k, a in found.items() if not a.is_single}, single

    def _from_npz(self, file: Path) -> ImportedEpisode:
        with open_zip(file) as archive:
            found = npz_arrays(file, archive)
            if missing := sorted(set(self._selection.keys) - set(found)):
                raise ImporterError(f"{file} lacks {', '.join(missing)}: leave it out")
            check_sums(file, archive)
            taken = {key: found[key] for key in self._selection.keys}
            if single := sorted(key for key, array in taken.items() if array.is_single):
                raise ImporterError(f"{file}: {', '.join(single)} must have a row per step")
            n_steps = max(array.n_rows for array in taken.values())
            self._selection.check_size(n_steps, where=str(file))
            fields = self._selection.episode(
                lambda key: NpzRows(archive, taken[key]).rows(0, taken[key].n_rows),
                where=str(file),
            )
            metadata: dict[str, object] = {"name": file.stem}
            for name, array in found.items():
                if array.is_single and array.spec.dtype.kind in "biuf":
                    value = plain(NpzRows(archive, array).rows(0, 1))
                    metadata |= {} if value is None else {name: value}
        return ImportedEpisode(fields, metadata | {"name": file.stem})

    def _from_csv(self, file: Path) -> ImportedEpisode:
        arrays = self._csv_arrays(file)
        if missing := sorted(set(self._selection.keys) - set(arrays)):
            raise ImporterError(f"{file} has no columns of {', '.join(missing)}: leave it out")
        fields = self._selection.episode(lambda key: arrays[key], where=str(file))
        return ImportedEpisode(fields, {"name": file.stem})

    def _csv_arrays(self, file: Path) -> dict[str, np.ndarray]:
        """Array name -> [L] or [L, n] numbers of a csv."""
        header, table = read_csv(file)
        if unknown := sorted({c for cs in self._columns.values() for c in cs} - set(header)):
            raise ContractError(
                f"columns name {', '.join(unknown)}, {file} has {', '.join(header)}: name these"
            )
        arrays = {}
        for name, columns in _grouped(header, self._columns, file).items():
            arrays[name] = table[:, [header.index(column) for column in columns]]
        return arrays


def read_csv(file: Path) -> tuple[list[str], np.ndarray]:
    """Column names, and [L, n_columns] float64 numbers, of a csv.

    Raises:
        ImporterError: no names, a cell that is no number, or rows of different length.
    """
    try:
        if file.stat().st_size > CSV_BYTES:
            raise ImporterError(f"{file} has more than {CSV_BYTES} bytes: split the episode")
        with file.open(newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
            separator = max(",;\t", key=first.count)
            stream.seek(0)
            lines = list(csv.reader(stream, delimiter=separator, strict=True))
    except (OSError, UnicodeError, csv.Error) as error:
        raise ImporterError(f"{file} cannot be read as csv: {error}") from error
    if not lines:
        raise ImporterError(f"{file} is empty")
    header = [name.strip() for name in lines[0]]
    if any(not name or NUMBER.fullmatch(name) for name in header) or len(set(header)) < len(header):
        raise ImporterError(
            f"{file}: the first line must name the columns, each differently, it is "
            f"{','.join(header)[:200]!r}"
        )
    rows = [line for line in lines[1:] if line]
    values = np.empty((len(rows), len(header)))
    for index, row in enumerate(rows):
        if len(row) != len(header):
            raise ImporterError(
                f"{file}: row {index + 1} has {len(row)} cells, there are {len(header)} columns"
            )
        for column, cell in enumerate(row):
            if NUMBER.fullmatch(cell) is None:
                raise ImporterError(
                    f"{file}: row {index + 1} has {cell[:40]!r} in the column {header[column]}, "
                    f"which is no number"
                )
            values[index, column] = float(cell)
    return header, values


def _episode_files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ImporterError(f"{path} is no folder: give one with an npz or csv for each episode")
    files = [
        p for p in path.iterdir() if _kind(p) in SUFFIXES and p.is_file() and p.name[0] not in "._"
    ]
    kinds = {_kind(p) for p in files}
    if len(kinds) != 1:
        what = "both npz and csv files" if kinds else "no npz or csv files"
        raise ImporterError(f"{path} holds {what}: put one kind of them there, one per episode")
    return sorted(files, key=lambda p: ([int(n) for n in re.findall(r"\d{1,18}", p.stem)], p.name))


def _kind(file: Path) -> str:
    """What a file is by its name; some systems write .CSV."""
    return file.suffix.lower()


def _grouped(
    header: Sequence[str], told: Mapping[str, Sequence[str]], file: Path
) -> dict[str, list[str]]:
    """Array name -> its columns in order."""
    groups = {name: list(columns) for name, columns in told.items()}
    used = {column for columns in told.values() for column in columns}
    numbered: dict[str, dict[int, str]] = {}
    for column in header:
        match = NUMBERED.fullmatch(column)
        if column in used:
            continue
        if match is None:
            groups.setdefault(column, [column])
        elif numbered.setdefault(match[1], {}).setdefault(int(match[2]), column) != column:
            raise ImporterError(f"{file}: {match[1]} has two columns of number {match[2]}")
    for name, columns in numbered.items():
        first = min(columns)
        if first > 1 or sorted(columns) != list(range(first, first + len(columns))):
            raise ImporterError(
                f"{file}: the columns of {name} are numbered {sorted(columns)}, there are gaps"
            )
        groups.setdefault(name, [columns[number] for number in sorted(columns)])
    return groups
