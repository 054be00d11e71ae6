"""Write a store's demonstrations in a format of others.

    cadence export format=lerobot_v3 store=outputs/collect/latest/store.zarr out=my_data_set
    cadence export format=lerobot_v3 store=push_t_human store.path=PATH out=push_t
    cadence export format=lerobot_v3 store=PATH out=my_data_set format.images=h264

`store=PATH` is a store that carries its contract; `store=NAME store.path=PATH` one whose contract
is in configs/store/NAME.yaml. What LeRobot has no place for (units, frames, limits, ...) is written
beside it, so that `cadence import format=lerobot src=my_data_set store=PATH` asks nothing and gives
an equal store. The data set appears under its name once it is whole: after Ctrl-C there is nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from data.exporters.exporter import Exporter, ExportReport
from data.store import EpisodeStore
from policy.entry import CONFIGS, entry, out_dir
from policy.progress import progress_bar

FREE = ("format.features.",)  # settings whose names the user chooses
EXPORTERS = "data.exporters."


def open_exporter(cfg: DictConfig) -> Exporter:
    """The exporter that is configured.

    Raises:
        ExporterError: a setting of it is wrong.
    """
    return instantiate(cfg.format)


def written_formats() -> list[str]:
    """Names of the formats that can be exported."""
    paths = sorted((CONFIGS / "format").glob("*.yaml"))
    return [p.stem for p in paths if f"_target_: {EXPORTERS}" in p.read_text()]


def run(cfg: DictConfig) -> Path:
    """Export as configured; returns the path of the data set."""
    exporter = open_exporter(cfg)
    store = instantiate(cfg.store)
    if not isinstance(store, EpisodeStore):
        raise ValueError(
            f"store is {cfg.store.get('_target_')}, which is several stores: export each of them"
        )
    out = Path(str(cfg.out)) if cfg.out is not None else out_dir(cfg, "export") / "data_set"
    with progress_bar(total=store.n_episodes, unit="episode") as bar:
        report = exporter.export(store, out, progress=lambda _: bar.update())
    print(describe(report))
    return out


def describe(report: ExportReport) -> str:
    """What was written, in words."""
    lines = [
        f"exported: {report.n_episodes} episodes, {report.n_steps} steps, "
        f"{report.n_bytes / 1e6:.1f} MB, to {report.path}",
        *(f"note: {note}" for note in report.notes),
    ]
    return "\n".join(lines)


def free_settings(arguments: Sequence[str]) -> list[str]:
    """Arguments as Hydra takes them: features may have any name, and store=PATH is store.path.

    Hydra refuses settings that are not in the YAML unless they begin with "++", and takes store=
    for a choice of configs/store, which it is where there is one.
    """
    names = {path.stem for path in (CONFIGS / "store").glob("*.yaml")}
    changed = []
    for argument in arguments:
        value = argument.removeprefix("store=")
        if value != argument and value not in names:
            argument = f"store.path={value}"
        changed.append(f"++{argument}" if argument.startswith(FREE) else argument)
    return changed


def check_format(arguments: Sequence[str]) -> None:
    """Refuse a format that is only read, before its settings are looked for in vain.

    Raises:
        ValueError: the format is imported and not exported.
    """
    for argument in arguments:
        name = argument.removeprefix("format=")
        is_there = name != argument and (CONFIGS / "format" / f"{name}.yaml").exists()
        if is_there and name not in written_formats():
            raise ValueError(
                f"format={name} can only be imported: choose format="
                f"{' or '.join(written_formats())}"
            )


def main() -> None:
    """Entry point."""
    try:
        check_format(sys.argv[1:])
    except ValueError as error:
        print(f"cadence export: error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.argv[1:] = free_settings(sys.argv[1:])
    entry("export", run)


if __name__ == "__main__":
    main()
