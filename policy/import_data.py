r"""Bring demonstrations of other formats into a store.

    cadence import known=push_t src=pusht_cchi_v7_replay.zarr store=push_t.zarr
    cadence import format=diffusion_policy src=buffer.zarr.zip store=a.zarr control_dt=0.1 \
        fields.state.unit=px fields.action.unit=px fields.action.kind=absolute \
        fields.action.rotation=none
    cadence import format=robomimic src=low_dim.hdf5 store=b.zarr take=[object,robot0_eef_pos] ...
    cadence import format=folder src=episodes/ store=c.zarr format.columns.state=[x,y] ...

A format does not say what all of its numbers mean; what it leaves open is not guessed but asked
for, all at once. `known=NAME` has the answers for a published data set. A rotation becomes six
numbers, which a network learns best, with to_6d.action=[3] (its first element) and
fields.action.rotation=axis_angle (what it is in the source).

An episode is in the store once it is whole: after Ctrl-C or a crash, the same command goes on with
the next missing one. So it does where the data set has grown at its end.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data.importers.apart import Apart
from data.importers.importer import Importer
from data.importers.intake import Intake, take_in
from data.importers.six_d import InSixD
from data.store import EpisodeStore
from data.types import Field
from data.wording import counted
from policy.entry import CONFIGS, entry
from policy.progress import progress_bar
from policy.settings import check_settings

FREE = (
    "fields.",
    "take.",
    "to_6d.",
    "format.columns.",
    "format.names.",
)  # settings whose names the user chooses
IMPORTERS = "data.importers."
N_SHOWN = 10  # episodes that were left out


def open_importer(cfg: DictConfig) -> Importer:
    """The importer that is configured, which reads in a process of its own.

    Raises:
        ValueError: no format is chosen, or one that is not imported.
        ImporterError: the data set cannot be read.
        ContractError: something must be told.
    """
    chosen = cfg.get("format")
    formats = ", ".join(read_formats())
    if chosen is None:
        raise ValueError(f"please give format=..., one of {formats}, or a data set known=...")
    used = OmegaConf.to_container(chosen, resolve=False)
    assert isinstance(used, dict)
    if not str(used.get("_target_")).startswith(IMPORTERS):
        raise ValueError(f"this format is written by cadence export, imported are {formats}")
    _check_format(used)
    for name in ("take", "control_dt", "task"):
        if cfg[name] not in (None, "") and name not in used:
            raise ValueError(
                f"{name} is {cfg[name]!r}, but this format takes it from the data set: leave it out"
            )
    importer = Apart(instantiate(chosen, _partial_=True), str(cfg.src))
    firsts = _plain(cfg.to_6d, "to_6d")
    return InSixD(importer, firsts) if firsts else importer


def read_formats() -> list[str]:
    """Names of the formats that can be imported."""
    paths = sorted((CONFIGS / "format").glob("*.yaml"))
    return [p.stem for p in paths if f"_target_: {IMPORTERS}" in p.read_text()]


def run(cfg: DictConfig) -> Path:
    """Import as configured; returns the path of the store."""
    _check(cfg)
    path = Path(str(cfg.store.path))
    importer = open_importer(cfg)
    print(f"{importer.path}: {counted(importer.n_episodes, 'episode')}")
    for name, field in importer.contract.fields.items():
        print(f"  {name}: {_described(field)}")
    for name, why in getattr(importer, "left_out", {}).items():
        print(f"  not taken: {name}: {why}")
    n_there = len(EpisodeStore.open(path).recorded_metadata) if path.exists() else 0
    with progress_bar(total=importer.n_episodes, unit="episode", initial=n_there) as bar:
        outcome = take_in(
            importer,
            path,
            leave_out_bad=cfg.bad == "leave_out",
            codec=instantiate(cfg.codec),
            progress=lambda _: bar.update(),
            say=bar.write,
        )
    print(describe(outcome))
    if outcome.is_interrupted:
        print("go on with the same command")
        raise KeyboardInterrupt
    if not path.exists():
        raise ValueError(f"no episode could be imported, {path} was not made")
    store = EpisodeStore.open(path)
    hidden = f"; {store.n_hidden} hidden" if store.n_hidden else ""
    counts = f"{counted(store.n_episodes, 'episode')}, {counted(store.n_steps, 'step')}{hidden}"
    print(f"store: {path} ({counts})")
    typed = shlex.quote(str(path))
    print(f"look at it: cadence doctor {typed}\nlearn from it: cadence train store.path={typed}")
    return path


def describe(outcome: Intake) -> str:
    """What became of the episodes, in words."""
    text = f"imported: {outcome.n_added} of {counted(outcome.n_total, 'episode')}"
    if outcome.n_there:
        text += f"; there before: {outcome.n_there}"
    if outcome.left_out:
        shown = [f"\n  {reason}" for reason in outcome.left_out[:N_SHOWN]]
        more = len(outcome.left_out) - len(shown)
        text += f"; left out: {len(outcome.left_out)}" + "".join(shown)
        text += f"\n  and {more} more" if more else ""
    return text


def free_settings(arguments: Sequence[str]) -> list[str]:
    """Arguments as Hydra takes them: fields may have any name, and store=PATH is store.path.

    Hydra refuses settings that are not in the YAML unless they begin with "++", and takes
    store=NAME for a choice of configs/store.
    """
    changed = []
    for argument in arguments:
        if argument.startswith("store="):
            argument = f"store.path={argument.removeprefix('store=')}"
        changed.append(f"++{argument}" if argument.startswith(FREE) else argument)
    return changed


def _check_format(used: Mapping) -> None:
    """Raise ValueError where a setting of a format is of another kind than its default."""
    for path in (CONFIGS / "format").glob("*.yaml"):
        defaults = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        assert isinstance(defaults, dict)
        if defaults["_target_"] != used["_target_"]:
            continue
        check_settings(OmegaConf.create({"format": used}), OmegaConf.create({"format": defaults}))
        for name, default in defaults.items():
            if isinstance(default, list) and not isinstance(used.get(name), list):
                raise ValueError(f"format.{name} is {used.get(name)!r}, it must be a list: [a,b]")


def _check(cfg: DictConfig) -> None:
    """Raise ValueError where a setting whose default does not tell its kind is of another."""
    if cfg.bad not in ("refuse", "leave_out"):
        raise ValueError(f"bad is {cfg.bad!r}, choose refuse or leave_out")
    for name, value in (("src", cfg.src), ("store", cfg.store.path)):
        if not str(value).strip():
            raise ValueError(f"{name} is empty: give {name}=PATH")
    if cfg.take is not None and not OmegaConf.is_config(cfg.take):
        raise ValueError(f"take is {cfg.take!r}, it must be take=[ARRAY,ARRAY] or take.NAME=ARRAY")
    rate = cfg.control_dt
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise ValueError(f"control_dt is {rate!r}, it must be a number [s]")
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(f"control_dt is {rate} s, it must be positive")
    for name, entries in _plain(cfg.fields, "fields").items():
        if not isinstance(entries, Mapping):
            raise ValueError(f"fields.{name} is {entries!r}, it must be fields.{name}.ENTRY=VALUE")


def _plain(node: object, name: str) -> dict:
    """Free settings as a dict.

    Raises:
        ValueError: they are something else.
    """
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {values!r}, it must be settings: {name}.KEY=VALUE")
    return {str(key): value for key, value in values.items()}


def _described(field: Field) -> str:
    """A field's meaning in a line."""
    parts = [f"{' x '.join(map(str, field.shape))} {field.dtype}"]
    if field.unit:
        parts.append(f"[{field.unit if isinstance(field.unit, str) else ', '.join(field.unit)}]")
    parts += [field.kind] if field.kind != "absolute" else []
    parts += [field.rotation] if field.rotation else []
    return " ".join(parts)


def main() -> None:
    """Entry point."""
    sys.argv[1:] = free_settings(sys.argv[1:])
    entry("import", run, choices={"format": read_formats()})


if __name__ == "__main__":
    main()
