"""The learning curve of a fine-tuning run: success over environment steps, and over minutes."""

from pathlib import Path

import matplotlib.pyplot as plt

from policy.metrics import read_metrics


def draw_learning(out: Path) -> Path | None:
    """Draw metrics.jsonl of a run as learning.png; None where nothing was evaluated.

    Args:
        out: folder of the run.
    """
    lines = read_metrics(out / "metrics.jsonl")
    evaluated = [line for line in lines if "success" in line]
    if not evaluated:
        return None
    trained = [line for line in lines if "train_success" in line]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    success = [line["success"] for line in evaluated]
    below = [line["success"] - line["success_low"] for line in evaluated]
    above = [line["success_high"] - line["success"] for line in evaluated]
    for axis, key, scale, label in (
        (axes[0], "env_steps", 1e-3, "steps in the environments, thousands"),
        (axes[1], "seconds", 1 / 60, "minutes"),
    ):
        x = [scale * line[key] for line in evaluated]
        axis.errorbar(x, success, (below, above), fmt="o-", capsize=3, label="evaluation, 95 %")
        axis.set(xlabel=label, ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    axes[0].plot(
        [1e-3 * line["env_steps"] for line in trained],
        [line["train_success"] for line in trained],
        color="0.6",
        linewidth=1,
        label="in training, with exploration",
        zorder=0,
    )
    axes[0].set_ylabel("success")
    axes[0].legend()
    place = out / "learning.png"
    figure.savefig(place, dpi=150)
    plt.close(figure)
    return place
