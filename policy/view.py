"""Look at episodes: pictures, state, actions, what was planned and what was sent.

    cadence view outputs/collect/latest/store.zarr
    cadence view PATH/pusht_cchi_v7_replay.zarr store=push_t_human_pixels episode=3
    cadence view outputs/run/latest         # of cadence run trace=true: plans over what was sent
    cadence view outputs/evaluate/latest    # results, videos; of training: curves
    cadence view STORE out=FILE.html 'episode=[0,3]'   # one file to keep or to send
    cadence view STORE png=DIR                 # pictures, where there is no browser
    cadence view STORE out=FILE.rrd            # for the Rerun viewer (pip install -e '.[rerun]')

Opens a page on this computer that nobody else can read: its address holds a secret. Only what is
looked at is read, so a large store opens at once; what the doctor finds without the pictures is
shown beside the episodes. Ctrl-C ends it.
"""

import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from data.doctor import Look, examine_store
from data.store import EpisodeStore, StoreError
from data.types import ContractError
from policy.durable import write_text
from policy.entry import entry
from policy.progress import progress_bar
from policy.view_page import page_of
from policy.view_png import write_pngs
from policy.view_rerun import write_rerun
from policy.view_run import RunFacts, read_chunks, read_run
from policy.view_server import Site, ViewServer
from policy.view_source import Episodes, store_in, told

FORMATS = ("html", "png", "rerun")
SUFFIXES = {".html": "html", ".htm": "html", ".rrd": "rerun"}
FIRST = 5  # episodes of a file, where none are named
NO_FINDINGS = {"state": "none", "findings": []}


class Doctor:
    """Looks for what is wrong with a store, in a thread of its own.

    Args:
        examine: what looks.
    """

    def __init__(self, examine: Callable[[], list[dict]]):
        self._examine = examine
        self._told: Mapping = {"state": "working", "findings": []}
        self._thread = threading.Thread(target=self._work, name="doctor", daemon=True)

    def told(self) -> Mapping:
        """What it found, as far as it is; starts it at the first time."""
        if self._thread.ident is None:
            self._thread.start()
        return self._told

    def wait(self) -> Mapping:
        """What it found."""
        self.told()
        self._thread.join()
        return self._told

    def _work(self) -> None:
        try:
            self._told = {"state": "ready", "findings": self._examine()}
        except Exception as error:  # The page shows it; the store can be looked at all the same.
            self._told = {"state": "failed", "problem": str(error), "findings": []}


def run(cfg: DictConfig) -> int:
    """Show as configured; returns the exit status."""
    if cfg.path is None:
        raise ValueError("please give a store or the folder of a run: cadence view PATH")
    path, kind, out = Path(str(cfg.path)), *_wanted(cfg)
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a store, or the folder of a run")
    place, facts = store_in(path), read_run(path) if path.is_dir() else RunFacts()
    if place is None and facts.is_empty:
        raise ValueError(
            f"{path} is no store, and holds neither a store nor results.json, run.json, "
            f"metrics.jsonl or videos: give the folder that a verb printed as out"
        )
    episodes = None if place is None else _open(cfg, path, place)
    if place is not None and episodes is None:
        print(f"more about it: cadence doctor {place}", file=sys.stderr)
        return 1
    doctor = Doctor(lambda: _findings(cfg, place)) if place is not None and cfg.doctor else None
    if episodes is not None and episodes.store.n_episodes == 0 and facts.is_empty:
        raise ValueError(f"{place} has no episodes: record some")
    chosen = _chosen(cfg, 0 if episodes is None else episodes.store.n_episodes)
    about = _about(path, place, episodes, facts, chosen)
    if kind is None:
        return _serve(cfg, about, episodes, facts, doctor)
    if episodes is None:
        raise ValueError(f"{path} has no episodes to write as {kind}: look at it without out=")
    assert out is not None
    _write(cfg, kind, out, about, episodes, chosen, doctor)
    return 0


def _wanted(cfg: DictConfig) -> tuple[str | None, Path | None]:
    """The format and the place that are asked for.

    Raises:
        ValueError: they do not fit together.
    """
    out = None if cfg.out is None else Path(str(cfg.out))
    kind = cfg["as"]
    if cfg.png is not None:
        if out is not None or kind not in (None, "png"):
            raise ValueError(f"png={cfg.png} goes alone: leave out and as away")
        return "png", Path(str(cfg.png))
    if kind is not None and kind not in FORMATS:
        raise ValueError(f"as is {kind!r}, choose one of {', '.join(FORMATS)}, or leave it out")
    if kind is not None and out is None:
        raise ValueError(f"as={kind} needs out=, where to write")
    if out is not None and kind is None:
        kind = SUFFIXES.get(out.suffix)
        if kind is None:
            raise ValueError(
                f"out={out} does not tell the format: name it FILE.html or FILE.rrd, or give "
                f"as=png for a folder of pictures"
            )
    return kind, out


def _open(cfg: DictConfig, path: Path, place: Path) -> Episodes | None:
    """The episodes of a store; None where it cannot be read."""
    given = cfg.store.get("contract")
    contract = None if given is None else instantiate(given)
    sources = instantiate(cfg.store.get("sources"), _convert_="all")
    try:
        store = EpisodeStore.open(place, contract=contract, sources=sources)
        size = store.contract.action.size
        chunks = read_chunks(path, size, store.n_episodes) if place.name == "trace.zarr" else {}
        return Episodes(store, chunks)
    except (StoreError, ContractError) as error:
        print(f"cadence view: {error}", file=sys.stderr)
        return None


def _findings(cfg: DictConfig, place: Path) -> list[dict]:
    given = cfg.store.get("contract")
    contract = None if given is None else instantiate(given)
    sources = instantiate(cfg.store.get("sources"), _convert_="all")
    look = Look(pictures=False)
    return told(examine_store(place, contract, sources=sources, look=look))


def _chosen(cfg: DictConfig, n_episodes: int) -> list[int]:
    """Numbers of the episodes to show first or to write.

    Raises:
        ValueError: there is no such episode.
    """
    given = cfg.episode
    if given is None:
        return list(range(min(FIRST, n_episodes)))
    numbers = list(given) if isinstance(given, ListConfig) else [given]
    for number in numbers:
        if type(number) is not int or not 0 <= number < n_episodes:
            has = f"there are 0..{n_episodes - 1}" if n_episodes else "there are none"
            raise ValueError(f"episode is {number!r}, {has}: give a number or [numbers]")
    if not numbers:
        raise ValueError("episode is [], give a number or [numbers], or leave it out")
    return numbers


def _about(
    path: Path, place: Path | None, episodes: Episodes | None, facts: RunFacts, chosen: list[int]
) -> dict:
    shown = {
        "n_episodes": 0,
        "n_steps": 0,
        "fields": [],
        "cameras": [],
        "task": "",
        "control_dt": 1,
    }
    return {
        **(shown if episodes is None else episodes.about()),
        "title": path.resolve().name,
        "path": str(place or path),
        "first_episode": chosen[0] if chosen else 0,
        "run": facts.to_json(),
    }


def _serve(
    cfg: DictConfig,
    about: dict,
    episodes: Episodes | None,
    facts: RunFacts,
    doctor: Doctor | None,
) -> int:
    """Serve the page until Ctrl-C."""
    if not 0 <= cfg.port < 65536:
        raise ValueError(f"port is {cfg.port}, it must be in 0..65535")
    site = Site(
        source=episodes,
        about=about,
        findings=(lambda: NO_FINDINGS) if doctor is None else doctor.told,
        media=tuple(facts.media),
    )
    try:
        server = ViewServer(site, port=cfg.port)
    except OSError as error:
        raise OSError(
            f"port {cfg.port} cannot be had ({error.strerror}): leave it out, that takes a free one"
        ) from error
    with server:
        print(f"{server.url}\nfor you alone; Ctrl-C ends it", flush=True)
        if cfg.browser and _has_browser():
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def _has_browser() -> bool:
    """Whether a browser opens beside this terminal, and not in it."""
    try:
        name = type(webbrowser.get()).__name__
    except webbrowser.Error:
        return False
    return name != "GenericBrowser"


def _write(
    cfg: DictConfig,
    kind: str,
    out: Path,
    about: dict,
    episodes: Episodes,
    chosen: Sequence[int],
    doctor: Doctor | None,
) -> None:
    """Write files.

    Raises:
        ValueError: the number of pictures is out of range.
    """
    if cfg.pictures < 1:
        raise ValueError(f"pictures is {cfg.pictures}, it must be at least 1")
    with progress_bar(total=len(chosen), unit="episode") as bar:
        if kind == "html":
            findings = NO_FINDINGS if doctor is None else doctor.wait()
            run_facts = {**about["run"], "media": []}  # They are files of their own.
            text = page_of(
                episodes,
                {**about, "run": run_facts},
                findings,
                episodes=chosen,
                most_pictures=cfg.pictures,
                progress=bar.update,
            )
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, text)
        elif kind == "rerun":
            write_rerun(episodes, about, episodes=chosen, file=out, progress=bar.update)
        else:
            for episode in chosen:
                write_pngs(episodes, about, [episode], out)
                bar.update()
    print(f"written: {out} (episodes {', '.join(map(str, chosen))})")


def main() -> None:
    """Entry point."""
    entry("view", run, positional="path")


if __name__ == "__main__":
    main()
