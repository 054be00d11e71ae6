"""Compare two evaluations on the same starts: which wins, and whether that may be chance.

    cadence evaluate checkpoint=outputs/train/latest env=pillar out=outputs/before
    cadence evaluate checkpoint=outputs/finetune/latest env=pillar out=outputs/after
    cadence compare a=outputs/before b=outputs/after

Starts that both do or both fail tell nothing of their difference. Of those that only one does, the
sign test says how likely so uneven a share is if both were equally good (McNemar 1947, exact). Two
evaluations that share their starts are told apart with fewer episodes than their intervals suggest.

Prints the comparison; writes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig

from policy.entry import entry
from policy.statistics import bootstrap_interval, sign_test

RESULTS = "results.json"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same starts.

    Args:
        n: starts.
        both: that both do.
        only_a: that only the first does.
        only_b: that only the second does.
        p_value: of the sign test, two-sided.
        success: differences of success rates, second less first, with its interval (95 %).
        score: the same of the scores.
    """

    n: int
    both: int
    only_a: int
    only_b: int
    p_value: float
    success: tuple[float, float, float]
    score: tuple[float, float, float]

    @classmethod
    def of(cls, a: Mapping[str, Any], b: Mapping[str, Any], *, seed: int = 0) -> Self:
        """From the contents of two files of results.

        Args:
            a: of the first.
            b: of the second.
            seed: of the resampling.

        Raises:
            ValueError: they were measured on different starts or in different environments.
        """
        if a["env"] != b["env"]:
            raise ValueError(
                f"a was measured with env {a['env']}, b with {b['env']}: there is nothing to pair, "
                f"evaluate both in the same environment"
            )
        first, second = by_start(a), by_start(b)
        if first.keys() != second.keys():
            raise ValueError(
                f"a has {len(first)} starts and b {len(second)}, of which "
                f"{len(first.keys() & second.keys())} are the same: evaluate both with the same "
                f"seed, episodes and task"
            )
        pairs = [(first[start], second[start]) for start in sorted(first)]
        wins = [(bool(x["success"]), bool(y["success"])) for x, y in pairs]
        only_a, only_b = wins.count((True, False)), wins.count((False, True))
        return cls(
            n=len(pairs),
            both=wins.count((True, True)),
            only_a=only_a,
            only_b=only_b,
            p_value=sign_test(only_a, only_b),
            success=_difference([float(y) - float(x) for x, y in wins], seed),
            score=_difference([y["score"] - x["score"] for x, y in pairs], seed),
        )

    def text(self) -> str:
        """In words and numbers."""
        success, score = (
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            for mean, low, high in (self.success, self.score)
        )
        return (
            f"{self.n} starts: both succeed in {self.both}, only a in {self.only_a}, only b in "
            f"{self.only_b}\n"
            f"b less a: success {success}, score {score}\n"
            f"sign test of {self.only_a} against {self.only_b}: p = {self.p_value:.2g}"
        )


def by_start(results: Mapping[str, Any]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Episodes by task and seed."""
    return {(str(e.get("task", "")), int(e["seed"])): e for e in results["episodes"]}


def load_results(path: Path) -> dict[str, Any]:
    """The contents of a file of results, or of the one in a folder.

    Raises:
        ValueError: there is none, or it is no evaluation.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path} holds no {RESULTS}: give the folder of cadence evaluate")
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(results, dict) or not {"episodes", "env"} <= results.keys():
        raise ValueError(f"{file} is no result of cadence evaluate: it lacks the episodes")
    return results


def run(cfg: DictConfig) -> Comparison:
    """Compare as configured."""
    a, b = (load_results(Path(str(path))) for path in (cfg.a, cfg.b))
    comparison = Comparison.of(a, b, seed=cfg.seed)
    for name, path, results in (("a", cfg.a, a), ("b", cfg.b, b)):
        print(f"{name}: success {results['success']:.3f}, score {results['score']:.3f}, {path}")
        if not results.get("complete", True):
            print(f"note: {name} was interrupted, and short episodes are over-represented in it")
    print(comparison.text())
    return comparison


def _difference(values: list[float], seed: int) -> tuple[float, float, float]:
    """Mean of paired differences and the ends of its interval."""
    low, high = bootstrap_interval(values, seed=seed)
    return sum(values) / len(values), low, high


def main() -> None:
    """Entry point."""
    entry("compare", run)


if __name__ == "__main__":
    main()
