"""The learning curve of a fine-tuning run over environment steps, and over minutes."""

from pathlib import Path

import matplotlib.pyplot as plt

from policy.metrics import read_metrics

# What is judged -> its metric in evaluation, its metric in training.
CURVES = {"success": ("success", "train_success"), "return": ("total", None)}


def draw_learning(out: Path, *, measure: str) -> Path | None:
    """Draw metrics.jsonl of a run as learning.png; None where nothing was evaluated.

    Args:
        out: folder of the run.
        measure: what is judged, "success" or "return".
    """
    file, (name, name_in_training) = out / "metrics.jsonl", CURVES[measure]
    lines = read_metrics(file) if file.exists() else []
    evaluated = [line for line in lines if name in line]
    if not evaluated:
        return None
    trained = [line for line in lines if name_in_training in line]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    values = [line[name] for line in evaluated]
    below = [line[name] - line[f"{name}_low"] for line in evaluated]
    above = [line[f"{name}_high"] - line[name] for line in evaluated]
    for axis, key, scale, label in (
        (axes[0], "env_steps", 1e-3, "steps in the environments, thousands"),
        (axes[1], "seconds", 1 / 60, "minutes"),
    ):
        x = [scale * line[key] for line in evaluated]
        axis.errorbar(x, values, (below, above), fmt="o-", capsize=3, label="evaluation, 95 %")
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    if trained:
        axes[0].plot(
            [1e-3 * line["env_steps"] for line in trained],
            [line[name_in_training] for line in trained],
            color="0.6",
            linewidth=1,
            label="in training, with exploration",
            zorder=0,
        )
    axes[0].set_ylabel(measure)
    if measure == "success":
        axes[0].set_ylim(-0.02, 1.02)
    axes[0].legend()
    place = out / "learning.png"
    figure.savefig(place, dpi=150)
    plt.close(figure)
    return place
