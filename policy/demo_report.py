"""What the report of `cadence demo` says: rows and panels from the folders its stages wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from policy.figures import durations, rates, training_curves
from policy.metrics import read_metrics
from policy.report import Panel, Row, video
from policy.scene import Sketch
from policy.statistics import wilson_interval
from policy.topdown import draw_fans, moving_picture


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Args:
        verb: collect, train, evaluate or run.
        command: what repeats it.
        seconds: how long it took.
    """

    verb: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Results:
    """Everything the report is made of.

    Args:
        stages: verb -> stage.
        metrics: lines of metrics.jsonl.
        evaluation: content of results.json.
        control: content of run.json.
        n_demonstrations: episodes learned from.
        videos: films of evaluated episodes, none where nothing renders.
        sketches: episodes drawn from above, none where actions are not places.
        control_dt: control period [s].
        redraw: command that draws the report again.
    """

    stages: Mapping[str, Stage]
    metrics: Sequence[Mapping]
    evaluation: Mapping
    control: Mapping
    n_demonstrations: int
    videos: Sequence[Path]
    sketches: Sequence[Sketch]
    control_dt: float
    redraw: str


def read_results(
    out: Path,
    stages: Mapping[str, Stage],
    *,
    n_demonstrations: int,
    sketches: Sequence[Sketch],
    control_dt: float,
) -> Results:
    """What the stages wrote below `out`."""
    return Results(
        stages=stages,
        metrics=read_metrics(out / "train" / "metrics.jsonl"),
        evaluation=json.loads((out / "evaluate" / "results.json").read_text()),
        control=json.loads((out / "run" / "run.json").read_text()),
        n_demonstrations=n_demonstrations,
        videos=sorted((out / "evaluate" / "videos").glob("*.mp4")),
        sketches=sketches,
        control_dt=control_dt,
        redraw=f"cadence demo fresh=false out={out}",
    )


def headline(results: Results) -> list[Row]:
    """The table at the top of the page and at the end of the terminal's output."""
    evaluation, timing = results.evaluation, results.control["timing"]
    seeds = _seeds(evaluation["episodes"])
    n_ticks = timing["n_commands"] + timing["n_missed"]
    successes = sum(episode["success"] for episode in results.control["episodes"])
    rows = [
        Row(
            "Success on unseen starts",
            _with_interval(evaluation["success"], evaluation["success_interval"]),
            f"{evaluation['n_episodes']} episodes, {seeds}, Wilson 95 % interval",
        )
    ]
    if "modes" in evaluation:
        ways = ", ".join(f"{name} {share:.2f}" for name, share in evaluation["modes"].items())
        rows.append(Row("Ways taken", ways, "shares of the successful episodes"))
    rows += [
        Row(
            "Score",
            _with_interval(evaluation["score"], evaluation["score_interval"]),
            "mean of the episodes' best reward, bootstrap 95 % interval",
        ),
        Row(
            "Network calls per action",
            f"{evaluation['calls_per_action']:g}",
            f"{evaluation['nfe']} calls per {evaluation['action_horizon']} executed actions",
        ),
        Row(
            "Planning latency",
            _percentiles(timing["latency"]),
            "p50 / p95 / p99 of the warm calls for a chunk, on this machine",
        ),
        Row(
            "Control period",
            _percentiles(timing["period"]),
            f"p50 / p95 / p99 between {timing['n_commands']} commands; wanted "
            f"{1e3 * results.control_dt:g} ms, largest deviation {1e3 * _jitter(results):.2f} ms",
        ),
        Row("Missed deadlines", f"{timing['n_missed']} of {n_ticks}", "control ticks"),
        Row(
            "Successes in wall-clock time",
            f"{successes} of {len(results.control['episodes'])}",
            f"simulated robot, {_seeds(results.control['episodes'])}",
        ),
        Row(
            "Training time",
            f"{results.stages['train'].seconds / 60:.1f} min",
            f"{max((entry['step'] for entry in results.metrics), default=0)} steps on "
            f"{results.n_demonstrations} demonstrations",
        ),
        Row(
            "All stages",
            f"{sum(stage.seconds for stage in results.stages.values()) / 60:.1f} min",
            ", ".join(f"{s.verb} {s.seconds:.0f} s" for s in results.stages.values()),
        ),
    ]
    return rows


def panels(results: Results) -> list[Panel]:
    """The figures of the page, those left out that there is nothing to draw for."""
    return [
        _success(results),
        *_fans(results),
        *_rollout(results),
        *_curves(results),
        *_durations(results),
    ]


def _success(results: Results) -> Panel:
    evaluation = results.evaluation
    n = evaluation["n_episodes"]
    rows = {"success": (evaluation["success"], tuple(evaluation["success_interval"]))}
    n_successes = sum(episode["success"] for episode in evaluation["episodes"])
    for name, share in evaluation.get("modes", {}).items():
        taken = round(share * n_successes)
        rows[f"success, {name}"] = (taken / n, wilson_interval(taken, n))
    return Panel(
        "Success on unseen starts",
        "Share of the starts on which the task was done, and by which way.",
        rates(rows),
        f"{n} episodes, {_seeds(evaluation['episodes'])}; bars: Wilson 95 % intervals.",
        results.stages["evaluate"].command,
    )


def _fans(results: Results) -> list[Panel]:
    if not results.sketches:
        return []
    fans = [sketch.fan for sketch in results.sketches]
    n_samples = len(fans[0].chunks)
    panel = Panel(
        "What the policy could do next",
        f"{n_samples} chunks sampled for one and the same observation, at the moment at which they "
        "differ most. The dot is where they begin. Two groups, parted at the widest gap, have two "
        "colours; a policy that averaged them would take neither way.",
        draw_fans(fans),
        f"Unseen starts {', '.join(str(fan.seed) for fan in fans)}; noise seeds "
        f"0..{n_samples - 1}; seen from above, x up, y to the left.",
        results.redraw,
    )
    return [panel]


def _rollout(results: Results) -> list[Panel]:
    if results.videos:
        figure = "".join(video(path) for path in results.videos[:2])
        starts = ", ".join(path.stem.replace("_", " ") for path in results.videos[:2])
        command, text = results.stages["evaluate"].command, "The first evaluated episodes."
    elif results.sketches:
        first = results.sketches[0]
        figure = moving_picture(first.rollout, first.shapes, control_dt=results.control_dt)
        starts, command = f"start {first.rollout.seed}", results.redraw
        text = "Seen from above: every observed position with its trail. Nothing renders here."
    else:
        return []
    return [Panel("A rollout to watch", text, figure, f"In real time; {starts}.", command)]


def _curves(results: Results) -> list[Panel]:
    if not results.metrics:
        return []
    panel = Panel(
        "Learning",
        "Loss on the demonstrations (raw weights) and on episodes held out (averaged weights, "
        "which are the ones evaluated).",
        training_curves(results.metrics),
        f"{results.n_demonstrations} demonstrations; every line of metrics.jsonl.",
        results.stages["train"].command,
    )
    return [panel]


def _durations(results: Results) -> list[Panel]:
    samples, timing = results.control["samples"], results.control["timing"]
    seeds, command = _seeds(results.control["episodes"]), results.stages["run"].command
    made = []
    for key, title, text, marks in (
        ("latency", "Planning latency", "Time the loop waited for a chunk.", {}),
        (
            "period",
            "Control period",
            "Time from one command to the next. A period in which a chunk is planned is longer by "
            "the planning latency and the next one shorter: deadlines are absolute.",
            {"wanted": results.control_dt},
        ),
    ):
        if len(samples[key]) > 0:
            marks = {**{p: timing[key][p] for p in ("p50", "p95", "p99")}, **marks}
            figure = durations(samples[key], label=title.lower(), marks=marks)
            source = f"{len(samples[key])} samples in wall-clock time, {seeds}."
            made.append(Panel(title, text, figure, source, command))
    return made


def _jitter(results: Results) -> float:
    """Largest deviation of a period from the one wanted [s]."""
    periods = results.control["samples"]["period"]
    return max((abs(period - results.control_dt) for period in periods), default=0.0)


def _percentiles(summary: Mapping | None) -> str:
    """p50 / p95 / p99 of durations, in milliseconds."""
    if summary is None:
        return "no samples"
    return " / ".join(f"{1e3 * summary[p]:.1f}" for p in ("p50", "p95", "p99")) + " ms"


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _seeds(episodes: Sequence[Mapping]) -> str:
    seeds = [episode["seed"] for episode in episodes]
    return f"seeds {min(seeds)}..{max(seeds)}" if seeds else "no episodes"
