"""What a LeRobot data set states of the numbers of its episodes, in `meta/`."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from data.importers.importer import ImporterError
from data.importers.lerobot_info import read_json_lines
from data.importers.lerobot_meta import LeRobotMeta
from data.importers.lerobot_table import column_names, parquet_columns
from data.lerobot_layout import INDEX_DTYPES, INFO

COMPARED = ("min", "max", "mean")  # statistics that are held against the numbers
Stated = dict[str, dict[str, object]]  # key -> statistic -> numbers


def stated_in(meta: LeRobotMeta, described: Path, keys: Sequence[str]) -> list[Stated]:
    """What a file of `meta/` states of the numbers of its episodes, in their order.

    Args:
        meta: of the data set.
        described: the file.
        keys: of the features that are asked for; what is not stated is left out.

    Raises:
        ImporterError: the file is damaged, or states numbers of features that info.json lacks.
    """
    if meta.version == "v2.1":
        rows = {
            str(line.get("episode_index")): line.get("stats") for line in read_json_lines(described)
        }
        by_number = {number: row for number, row in rows.items() if isinstance(row, Mapping)}
        _check_listed(meta, described, {key for row in by_number.values() for key in row})
        return [_said(by_number.get(str(n), {}), keys) for n in range(len(meta.episodes))]
    names = [name for name in column_names(described) if name.startswith("stats/")]
    _check_listed(meta, described, {n.removeprefix("stats/").rpartition("/")[0] for n in names})
    columns = parquet_columns(described, [], also=[_column(k, s) for k in keys for s in COMPARED])
    n_lines = max((len(values) for values in columns.values()), default=0)
    return [
        {
            key: {
                statistic: columns[_column(key, statistic)][line]
                for statistic in COMPARED
                if _column(key, statistic) in columns
            }
            for key in keys
        }
        for line in range(n_lines)
    ]


def _check_listed(meta: LeRobotMeta, described: Path, keys: Collection[str]) -> None:
    """Raise ImporterError where there are numbers of a feature that info.json does not list.

    One whose numbers have another name, because it was renamed, is listed without any.
    """
    unlisted = sorted(set(keys) - set(meta.features) - set(INDEX_DTYPES))
    if unlisted and not set(meta.features) - set(keys):
        raise ImporterError(
            f"{described} has statistics of {', '.join(unlisted[:3])}, which {meta.root / INFO} "
            f"does not list: copy or download the data set again, or believe info.json with "
            f"format.verify=false"
        )


def _column(key: str, statistic: str) -> str:
    return f"stats/{key}/{statistic}"


def _said(row: Mapping[str, object], keys: Sequence[str]) -> Stated:
    found: Stated = {}
    for key in keys:
        said = row.get(key)
        if isinstance(said, Mapping):
            found[key] = dict(said)
    return found
