"""Edit a store of demonstrations: hide, relabel, copy, merge and split its episodes.

    cadence edit STORE                                        # what is in it
    cadence edit STORE filter='success==false'                # ... and which episodes these are
    cadence edit STORE do=hide filter='steps<20' dry_run=true
    cadence edit STORE do=keep filter='success==true and operator~anna'
    cadence edit STORE do=show                                # all that was hidden
    cadence edit STORE do=label episodes=[3,5-9] labels.operator=anna labels.success=false
    cadence edit STORE do=copy out=NEW.zarr                   # without what is hidden, compact
    cadence edit STORE do=copy out=NEW.zarr codec=jpeg codec.quality=90
    cadence edit STORE do=merge with=[B.zarr,C.zarr] out=NEW.zarr
    cadence edit STORE do=append with=[B.zarr]                # B's episodes into STORE
    cadence edit STORE do=split fraction=0.1 out=FOLDER       # FOLDER/train.zarr and val.zarr
    cadence edit STORE do=split fraction=0.1                  # only writes split=train or val

A filter is `KEY OPERATOR VALUE`, several of them with ` and ` between. Keys are those of the
episodes' metadata (`success`, `operator`, `seed`, `expert`, `task`, `setup.light`), `episode` (its
number) and `steps` (its length); operators are == != < <= > >= and ~ (the text holds it).

Hiding and labelling change a list in the store and not the episodes: at once, whole or not at all,
and `do=show` brings hidden ones back. Training, evaluation and everything else see only what is
shown. A new store is there once it is whole; Ctrl-C leaves nothing behind. While somebody records
into the store it can be read, but not edited.
"""

import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from data import edit
from data.create import check_free
from data.opening import folder
from data.query import select
from data.store import EpisodeStore
from policy.entry import entry
from policy.progress import progress_bar

DOES = ("list", "hide", "keep", "show", "label", "copy", "merge", "append", "split")
IN_PLACE = ("hide", "keep", "show", "label", "append")
MOST_EPISODES = 10**7  # that are named by a range
N_VALUES = 6  # of a key that are counted one by one


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        store: that it is done to.
        episodes: of it that were chosen.
        others: further stores.
    """

    store: EpisodeStore
    episodes: np.ndarray
    others: list[EpisodeStore]

    @property
    def choice(self) -> str:
        """The chosen episodes in words."""
        n_steps = int(self.store.lengths_of(self.episodes).sum())
        text = f"{len(self.episodes)} of {self.store.n_episodes} episodes ({n_steps} steps)"
        return f"{text}: {_some(self.episodes)}" if len(self.episodes) else text


def describe(store: EpisodeStore) -> str:
    """What is in a store, in words."""
    version = f", {store.n_hidden} more are hidden" if store.n_hidden else ""
    lines = [f"{store.path}: {store.n_episodes} episodes, {store.n_steps} steps{version}"]
    if store.n_episodes:
        lengths = store.lengths_of(np.arange(store.n_episodes))
        lines.append(f"  steps: {lengths.min()} to {lengths.max()} an episode")
    for name, field in store.contract.fields.items():
        lines.append(f"  field {name}: {field.dtype} {list(field.shape)} {_unit(field.unit)}")
    metadata = store.episode_metadata
    for key in sorted({key for entries in metadata for key in entries}):
        values = [entries[key] for entries in metadata if key in entries]
        lines.append(f"  {key}: {_values(values)}")
    return "\n".join(line.rstrip() for line in lines)


def run(cfg: DictConfig) -> None:
    """Edit as configured."""
    _check(cfg)
    with contextlib.ExitStack() as stack:
        # What is only planned must not wait for whoever writes.
        mode = "a" if cfg.do in IN_PLACE and not cfg.dry_run else "r"
        store = stack.enter_context(EpisodeStore.open(str(cfg.path), mode=mode))
        others = [EpisodeStore.open(str(path)) for path in cfg["with"]]
        conditions = conditions_of(cfg.filter)
        episodes = select(store, conditions, episodes=episodes_of(cfg.episodes))
        plan = Plan(store, episodes, others)
        if cfg.do == "list":
            print(describe(store))
            if conditions or cfg.episodes is not None:
                print(f"chosen: {plan.choice}")
            return
        said = _intent(cfg, plan)
        _check_possible(cfg, plan)
        if cfg.dry_run:
            print(f"would {said}; nothing was done (dry_run)")
            return
        _do(cfg, plan)
        print(f"done: {said}")


def conditions_of(given: object) -> list[str]:
    """The conditions of a filter: none, a text with ` and ` between them, or a list.

    Raises:
        ValueError: it is something else.
    """
    if given is None:
        return []
    if isinstance(given, str):
        return re.split(r"\s+and\s+", given.strip())
    if isinstance(given, ListConfig | list):
        return [str(condition) for condition in given]
    raise ValueError(f"filter is {given!r}, it must be a text such as success==true, or a list")


def episodes_of(given: object) -> np.ndarray | None:
    """Episodes of numbers and ranges; None for all.

    Raises:
        ValueError: it is something else.
    """
    if given is None:
        return None
    entries = list(given) if isinstance(given, ListConfig | list) else [given]
    episodes: list[int] = []
    for one in entries:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(one))
        if match is None or isinstance(one, bool):
            raise ValueError(f"episodes has {one!r}, give numbers and ranges: episodes=[3,5-9]")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"episodes has the range {one}, which is empty: give {last}-{first}")
        if last >= MOST_EPISODES:
            raise ValueError(f"episodes has {one}, no store has as many: give numbers of its own")
        episodes += range(first, last + 1)
    return np.array(episodes, np.int64)


def _check(cfg: DictConfig) -> None:
    """Refuse settings that do not go together, before anything is opened."""
    if cfg.do not in DOES:
        raise ValueError(f"do is {cfg.do!r}, choose one of {', '.join(DOES)}")
    chooses = cfg.filter is not None or cfg.episodes is not None
    if cfg.do in ("hide", "keep") and not chooses:
        raise ValueError(f"do={cfg.do} needs filter=... or episodes=...: which ones?")
    if cfg.do in ("show", "merge", "append", "split") and chooses:
        raise ValueError(f"do={cfg.do} is for all episodes: leave filter and episodes out")
    if (cfg.do == "label") != bool(cfg.labels):
        raise ValueError("labels.KEY=VALUE and do=label go together: give both or neither")
    if (cfg.do in ("merge", "append")) != bool(cfg["with"]):
        raise ValueError("with=[STORE,...] goes with do=merge and do=append: give both or neither")
    if cfg.do in ("copy", "merge") and cfg.out is None:
        raise ValueError(f"please give out=..., where do={cfg.do} writes the new store")
    if cfg.do in IN_PLACE and cfg.out is not None:
        raise ValueError(f"do={cfg.do} changes the store in place: leave out=... out")


def _check_possible(cfg: DictConfig, plan: Plan) -> None:
    """Refuse what cannot be done, also where it is only planned."""
    if cfg.do == "keep" and plan.store.n_episodes and not len(plan.episodes):
        raise ValueError("do=keep would hide all episodes, as none was chosen: correct the filter")
    if cfg.do == "split":
        edit.divided(plan.store, cfg.fraction, cfg.seed)
    if cfg.do == "append":
        for other in plan.others:
            edit.check_other(plan.store, other)
    if cfg.out is not None:
        outs = (
            [f"{cfg.out}/{name}.zarr" for name in edit.SPLITS] if cfg.do == "split" else [cfg.out]
        )
        for out in outs:
            check_free(folder(str(out), "created"))


def _intent(cfg: DictConfig, plan: Plan) -> str:
    """What is done, in words."""
    path, stores = plan.store.path, [plan.store, *plan.others]
    if cfg.do in ("hide", "keep"):
        return f"{cfg.do} {plan.choice}"
    if cfg.do == "show":
        return f"show {plan.store.n_hidden} hidden episodes of {path}"
    if cfg.do == "label":
        return f"set {json.dumps(_labels(cfg))} in {plan.choice}"
    if cfg.do == "copy":
        return f"write {plan.choice} into {cfg.out}"
    if cfg.do == "merge":
        n = sum(store.n_episodes for store in stores)
        return f"write {n} episodes of {len(stores)} stores into {cfg.out}"
    if cfg.do == "append":
        n = sum(store.n_episodes for store in plan.others)
        return f"append {n} episodes of {len(plan.others)} stores to {path}"
    share = f"{cfg.fraction:g} of {plan.store.n_episodes} episodes to validate with"
    where = "labels of its episodes" if cfg.out is None else f"{cfg.out}/train.zarr and val.zarr"
    return f"split {path}, {share}, into {where}"


def _do(cfg: DictConfig, plan: Plan) -> None:
    store, chosen, codec = plan.store, plan.episodes, instantiate(cfg.codec)
    if cfg.do == "hide":
        edit.hide(store, chosen)
    elif cfg.do == "keep":
        edit.keep(store, chosen)
    elif cfg.do == "show":
        edit.show_all(store)
    elif cfg.do == "label":
        edit.relabel(store, chosen, _labels(cfg))
    elif cfg.do == "copy":
        with _bar([store], len(chosen)) as progress:
            edit.copy(store, cfg.out, episodes=chosen, codec=codec, progress=progress)
    elif cfg.do == "merge":
        stores = [store, *plan.others]
        with _bar(stores) as progress:
            edit.merge(stores, cfg.out, codec=codec, progress=progress)
    elif cfg.do == "append":
        _append(plan)
    elif cfg.out is None:
        store.close()
        with EpisodeStore.open(store.path, mode="a") as writable:
            edit.label_split(writable, cfg.fraction, seed=cfg.seed)
    else:
        with _bar([store]) as progress:
            where, seed = str(cfg.out), cfg.seed
            edit.split(store, cfg.fraction, where, seed=seed, codec=codec, progress=progress)


def _append(plan: Plan) -> None:
    before = plan.store.n_episodes
    try:
        with _bar(plan.others) as progress:
            for other in plan.others:
                edit.add(plan.store, other, progress=progress)
    except BaseException:
        n = plan.store.n_episodes - before
        print(f"{n} episodes were appended, from episode {before} on; they are whole")
        raise


@contextlib.contextmanager
def _bar(stores: Sequence[EpisodeStore], n_episodes: int | None = None) -> Iterator[edit.Progress]:
    total = sum(store.n_episodes for store in stores) if n_episodes is None else n_episodes
    with progress_bar(total=total, unit="episode") as bar:
        yield lambda n_steps: bar.update()


def _labels(cfg: DictConfig) -> dict[str, object]:
    labels = OmegaConf.to_container(cfg.labels)
    assert isinstance(labels, dict)
    return {str(key): value for key, value in labels.items()}


def _values(values: list) -> str:
    """The values of a key in words."""
    counts = Counter(json.dumps(value, sort_keys=True) for value in values)
    if len(counts) <= N_VALUES:
        return ", ".join(f"{text} in {n}" for text, n in counts.most_common())
    if all(isinstance(value, int | float) for value in values):
        return f"{min(values):g} to {max(values):g} in {len(values)}"
    most = ", ".join(f"{text[:40]} in {n}" for text, n in counts.most_common(N_VALUES))
    return f"{most}, {len(counts) - N_VALUES} more"


def _unit(unit: str | tuple[str, ...]) -> str:
    return unit if isinstance(unit, str) else ", ".join(unit)


def _some(episodes: np.ndarray, limit: int = 20) -> str:
    rest = f" and {len(episodes) - limit} more" if len(episodes) > limit else ""
    return ", ".join(map(str, episodes[:limit].tolist())) + rest


def _as_hydra(argument: str) -> str:
    """An argument as Hydra's grammar takes it: a filter as one text, labels as new settings."""
    key, is_setting, value = argument.partition("=")
    if is_setting and key == "filter" and not re.match(r"""\s*(\[|'|"|null$)""", value):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"filter='{escaped}'"
    return f"+{argument}" if key.startswith("labels.") else argument


def main() -> None:
    """Entry point."""
    sys.argv[1:] = [_as_hydra(argument) for argument in sys.argv[1:]]
    entry("edit", run, positional="path")


if __name__ == "__main__":
    main()
