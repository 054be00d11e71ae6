"""Compare two evaluations on the same starts: which wins, and whether that may be chance.

    cadence evaluate checkpoint=outputs/train/latest env=pillar out=outputs/before
    cadence evaluate checkpoint=outputs/finetune/latest env=pillar out=outputs/after
    cadence compare a=outputs/before b=outputs/after
    cadence compare a=outputs/before b=outputs/after measure=return  # tasks without success

Starts that both do or both fail tell nothing of their difference. Of those that only one does, the
sign test says how likely so uneven a share is if both were equally good (McNemar 1947, exact). Two
evaluations that share their starts are told apart with fewer episodes than their intervals suggest.
Of returns (sums of rewards) the test is of the starts in which either is the higher.

Prints the comparison; writes nothing.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig

from policy.entry import entry
from policy.statistics import bootstrap_interval, sign_test

RESULTS = "results.json"
MEASURES = ("success", "return")


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same starts.

    Args:
        n: starts.
        both: that both do.
        only_a: that only the first does.
        only_b: that only the second does.
        wins: starts that the first and the second win, by success or by return.
        p_value: of the sign test of `wins`, two-sided.
        success: differences of success rates, second less first, with its interval (95 %).
        score: the same of the scores.
        total: the same of the returns; None where success is the measure.
    """

    n: int
    both: int
    only_a: int
    only_b: int
    wins: tuple[int, int]
    p_value: float
    success: tuple[float, float, float]
    score: tuple[float, float, float]
    total: tuple[float, float, float] | None = None

    @classmethod
    def of(
        cls, a: Mapping[str, Any], b: Mapping[str, Any], *, measure: str = "success", seed: int = 0
    ) -> Self:
        """From the contents of two files of results.

        Args:
            a: of the first (see `load_results`).
            b: of the second.
            measure: what decides a start, "success" or "return".
            seed: of the resampling.

        Raises:
            ValueError: they were measured on different starts or in different environments, or
                there is no such measure.
        """
        if measure not in MEASURES:
            raise ValueError(f"measure is {measure!r}, choose {' or '.join(MEASURES)}")
        if a["env"] != b["env"]:
            raise ValueError(
                f"the environments differ, there is nothing to pair: "
                f"{'; '.join(_differences(a['env'], b['env']))}: evaluate both in the same one"
            )
        first, second = by_start(a), by_start(b)
        if first.keys() != second.keys():
            raise ValueError(
                f"a has {len(first)} starts and b {len(second)}, of which "
                f"{len(first.keys() & second.keys())} are the same: {_mend(a, b)}"
            )
        pairs = [(first[start], second[start]) for start in sorted(first)]
        done = [(bool(x["success"]), bool(y["success"])) for x, y in pairs]
        only_a, only_b = done.count((True, False)), done.count((False, True))
        wins, total = (only_a, only_b), None
        if measure == "return":
            gains = [y["total"] - x["total"] for x, y in pairs]
            wins = (sum(gain < 0 for gain in gains), sum(gain > 0 for gain in gains))
            total = _difference(gains, seed)
        return cls(
            n=len(pairs),
            both=done.count((True, True)),
            only_a=only_a,
            only_b=only_b,
            wins=wins,
            p_value=sign_test(*wins),
            success=_difference([float(y) - float(x) for x, y in done], seed),
            score=_difference([y["score"] - x["score"] for x, y in pairs], seed),
            total=total,
        )

    def text(self) -> str:
        """In words and numbers."""
        a, b = self.wins
        chance = "p < 1e-300" if self.p_value < 1e-300 else f"p = {self.p_value:.2g}"
        test = f"sign test of {a} against {b}: {chance}"
        if self.total is not None:
            return (
                f"{self.n} starts: the return of a is higher in {a}, that of b in {b}, "
                f"equal in {self.n - a - b}\n"
                f"b less a: return {_with_interval(self.total)}\n{test}"
            )
        if self.both == self.only_a == self.only_b == 0:
            return (
                f"{self.n} starts: neither succeeds in any, so success cannot tell them apart: "
                f"compare their returns with measure=return\n"
                f"b less a: score {_with_interval(self.score)}"
            )
        return (
            f"{self.n} starts: both succeed in {self.both}, only a in {self.only_a}, only b in "
            f"{self.only_b}\n"
            f"b less a: success {_with_interval(self.success)}, "
            f"score {_with_interval(self.score)}\n{test}"
        )


def by_start(results: Mapping[str, Any]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Episodes by task and seed."""
    return {_start(episode): episode for episode in results["episodes"]}


def load_results(path: Path, *, measure: str = "success") -> dict[str, Any]:
    """The contents of a file of results, or of the one in a folder.

    Args:
        path: of the file or the folder.
        measure: what is to be compared; "return" needs the totals, which older files lack.

    Raises:
        ValueError: there is none, it is no evaluation, or an episode is not what it should be.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path} holds no {RESULTS}: give the folder of cadence evaluate")
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(results, dict) or not {"episodes", "env"} <= results.keys():
        raise ValueError(f"{file} is no result of cadence evaluate: it lacks the episodes or env")
    _check_episodes(results["episodes"], file, measure)
    return results


def run(cfg: DictConfig) -> Comparison:
    """Compare as configured."""
    a, b = (load_results(Path(str(path)), measure=cfg.measure) for path in (cfg.a, cfg.b))
    comparison = Comparison.of(a, b, measure=cfg.measure, seed=cfg.seed)
    # Of the episodes that are paired, whatever else the file says.
    shown = {"success": "success", "score": "score"}
    if cfg.measure == "return":
        shown = {"return": "total", **shown}
    for name, path, results in (("a", cfg.a, a), ("b", cfg.b, b)):
        means = (f"{word} {_mean(results, key):.3f}" for word, key in shown.items())
        print(f"{name}: {', '.join(means)}, {path}")
        if _is_interrupted(results):
            print(f"note: {name} was interrupted, and short episodes are over-represented in it")
    print(comparison.text())
    return comparison


def _check_episodes(episodes: Any, file: Path, measure: str) -> None:
    """Raise ValueError, naming the file and the episode, where one cannot be compared."""
    if not isinstance(episodes, list) or not episodes:
        raise ValueError(f"{file}: episodes is {episodes!r:.80}, it must be a list of at least one")
    starts: dict[tuple[str, int], int] = {}
    for i, episode in enumerate(episodes):
        name = f"{file}: episodes[{i}]"
        if not isinstance(episode, dict):
            raise ValueError(f"{name} is {episode!r:.80}, it must hold seed, success and score")
        if "total" not in episode and measure == "return":
            raise ValueError(
                f"{name} lacks its total, which measure=return needs: the file is of an older "
                f"program, evaluate again"
            )
        for key, (is_right, kind) in KINDS.items():
            value = episode.get(key)
            if not (is_right(value) or (key == "total" and key not in episode)):
                said = f"is {value!r:.80}" if key in episode else "is missing"
                raise ValueError(f"{name}.{key} {said}, it must be {kind}")
        task, seed = start = _start(episode)
        if start in starts:
            of_task = f" of task {task}" if task else ""
            raise ValueError(
                f"{name} has seed {seed}{of_task}, as episodes[{starts[start]}]: each start must "
                f"be there once"
            )
        starts[start] = i


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, float) or _is_whole(value)
    return is_number and abs(value) <= sys.float_info.max  # which a whole number may exceed too


# Entries of an episode: whether a value is right, and what it must be.
KINDS = {
    "seed": (_is_whole, "a whole number"),
    "success": (lambda value: isinstance(value, bool), "true or false"),
    "score": (_is_finite, "a finite number"),
    "total": (_is_finite, "a finite number"),
}


def _start(episode: Mapping[str, Any]) -> tuple[str, int]:
    return str(episode.get("task", "")), int(episode["seed"])


def _mean(results: Mapping[str, Any], key: str) -> float:
    values = [float(episode[key]) for episode in results["episodes"]]
    return sum(values) / len(values)


def _is_interrupted(results: Mapping[str, Any]) -> bool:
    return not results.get("complete", True)


def _mend(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """What to do where the starts differ."""
    cut = [name for name, results in (("a", a), ("b", b)) if _is_interrupted(results)]
    if not cut:
        return "evaluate both with the same seed, episodes and task"
    was, it = ("was", "it") if len(cut) == 1 else ("were", "them")
    return f"{' and '.join(cut)} {was} interrupted, evaluate {it} again to the end"


def _differences(a: Any, b: Any, name: str = "env") -> list[str]:
    """Where two configurations differ, entry by entry."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return [] if a == b else [f"{name} is {a!r} in a, {b!r} in b"]
    found = []
    for key in sorted({*a, *b}, key=str):
        inner = f"{name}.{key}"
        if key in a and key in b:
            found += _differences(a[key], b[key], inner)
        else:
            side, value = ("a", a[key]) if key in a else ("b", b[key])
            found.append(f"{inner} is only in {side}, {value!r}")
    return found


def _difference(values: list[float], seed: int) -> tuple[float, float, float]:
    """Mean of paired differences and the ends of its interval."""
    low, high = bootstrap_interval(values, seed=seed)
    return sum(values) / len(values), low, high


def _with_interval(difference: tuple[float, float, float]) -> str:
    mean, low, high = difference
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    """Entry point."""
    entry("compare", run)


if __name__ == "__main__":
    main()
