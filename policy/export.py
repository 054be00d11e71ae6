"""Write a store's demonstrations in a format of others, or a policy as a package.

    cadence export format=lerobot_v3 store=outputs/collect/latest/store.zarr out=my_data_set
    cadence export format=lerobot_v3 store=push_t_human store.path=PATH out=push_t
    cadence export format=lerobot_v3 store=PATH out=my_data_set format.images=h264

`store=PATH` is a store that carries its contract; `store=NAME store.path=PATH` one whose contract
is in configs/store/NAME.yaml. What LeRobot has no place for (units, frames, limits, ...) is written
beside it, so that `cadence import format=lerobot src=my_data_set store=PATH` asks nothing and gives
an equal store. The data set appears under its name once it is whole: after Ctrl-C there is nothing.

    cadence export format=aot checkpoint=outputs/train/latest sampler=ddim_8 out=my_policy
    cadence export format=onnx checkpoint=outputs/train/latest sampler=streaming out=my_policy
    cadence export format=onnx checkpoint=outputs/train/latest what=denoiser out=my_denoiser

A package is a sampler call as a graph (observation, carry and noise in, actions and carry out), or
encoder, one denoiser call and un-normalisation. It is compared with the checkpoint, and there is
none where the error is over the tolerance; then both are timed in turns. cadence serve
checkpoint=my_policy needs neither the networks' nor the samplers' code. aot is native code for
processors like this one, so run packages of your own only; onnx runs anywhere with onnxruntime.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from data.exporters.exporter import Exporter, ExportReport
from data.store import EpisodeStore
from data.wording import counted
from policy.entry import CONFIGS, entry, out_dir
from policy.progress import progress_bar

FREE = ("format.features.",)  # settings whose names the user chooses


def open_exporter(cfg: DictConfig) -> Exporter:
    """The exporter that is configured.

    Raises:
        ExporterError: a setting of it is wrong.
    """
    return instantiate(cfg.format)


def written_formats() -> list[str]:
    """Names of the formats that can be exported."""
    paths = sorted((CONFIGS / "format").glob("*.yaml"))
    targets = [f"_target_: {package}" for package in WAYS]
    return [p.stem for p in paths if any(target in p.read_text() for target in targets)]


def run(cfg: DictConfig) -> Path:
    """Export as configured; returns the path of what was written."""
    target = str(cfg.format.get("_target_"))
    return next(way for package, way in WAYS.items() if target.startswith(package))(cfg)


def export_store(cfg: DictConfig) -> Path:
    """Write a store's demonstrations; returns the path of the data set.

    Raises:
        ValueError: `checkpoint` is given, or `store` is several stores.
    """
    if cfg.checkpoint is not None:
        raise ValueError(
            f"this format is of stores, checkpoint is {cfg.checkpoint}: give store=..., or "
            f"format=aot or onnx for a policy"
        )
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


def export_package(cfg: DictConfig) -> Path:
    """Write a policy; returns the path of the package. For errors see `policy.export_policy`."""
    from policy.export_policy import export_policy  # Networks are not needed to write stores.

    return export_policy(cfg)


# Package of a format's class -> how it is exported. What is exported (here a store), the way reads
# from the configuration; settings that only another way needs, it refuses.
WAYS: Mapping[str, Callable[[DictConfig], Path]] = {
    "data.exporters.": export_store,
    "policy.packaged.": export_package,
}


def describe(report: ExportReport) -> str:
    """What was written, in words."""
    lines = [
        f"exported: {counted(report.n_episodes, 'episode')}, {counted(report.n_steps, 'step')}, "
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


def without_store(arguments: Sequence[str]) -> list[str]:
    """Arguments of a policy's export, whose store none has to be given for."""
    named = [a.removeprefix("format=") for a in arguments if a.startswith("format=")]
    files = [CONFIGS / "format" / f"{name}.yaml" for name in named]
    is_policy = any(f.is_file() and "_target_: policy.packaged." in f.read_text() for f in files)
    has_store = any(a.startswith(("store=", "store.")) for a in arguments)
    return [*arguments, "~store"] if is_policy and not has_store else list(arguments)


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
    sys.argv[1:] = without_store(free_settings(sys.argv[1:]))
    entry("export", run, choices={"format": written_formats()})


if __name__ == "__main__":
    main()
