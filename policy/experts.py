"""Draw which experts of a checkpoint serve which noise levels.

    cadence experts checkpoint=outputs/train/latest
    cadence experts checkpoint=outputs/train/latest sigma_max=80 out=figures

One panel a layer: the probabilities of the experts over sigma, and above them the experts that an
action of such a level uses. Writes experts.png, and experts.json with the share of the levels (even
on a logarithmic scale) that each expert of a layer serves.

Shape legend: `L` layers, `n` levels, `N` experts, `k` chosen ones.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from omegaconf import DictConfig
from torch import Tensor

from policy.build import from_checkpoint, trained_levels
from policy.checkpoint import load
from policy.durable import write_json
from policy.entry import entry, out_dir, pick_device
from policy.nets.expert_usage import usage
from policy.nets.experts import Experts


@torch.no_grad()
def run(cfg: DictConfig) -> Path:
    """Draw as configured; returns the picture's file."""
    if cfg.n_levels < 2:
        raise ValueError(f"n_levels is {cfg.n_levels}, it must be at least 2")
    loaded = load(cfg.checkpoint)
    device = pick_device(cfg.device)
    policy = from_checkpoint(loaded).to(device).eval()
    lowest, highest = trained_levels(loaded.config)
    lowest, highest = max(lowest, cfg.sigma_min), min(highest, cfg.sigma_max)
    if not 0 < lowest < highest:
        raise ValueError(
            f"there are no levels from {lowest:g} to {highest:g}: change sigma_min or sigma_max"
        )
    sigma = torch.logspace(math.log10(lowest), math.log10(highest), cfg.n_levels)
    c_noise = policy.preconditioning(sigma.to(device)).c_noise
    probabilities = usage(policy.net, c_noise).cpu()
    top_k = next(m.top_k for m in policy.net.modules() if isinstance(m, Experts))
    out = out_dir(cfg, "experts")
    shares = served(probabilities, top_k=top_k).mean(dim=1)
    for layer, row in enumerate(shares.tolist(), start=1):
        print(f"layer {layer}: " + "  ".join(f"{share:.2f}" for share in row))
    write_json(out / "experts.json", {"sigma": [lowest, highest], "served": shares.tolist()})
    draw(probabilities, sigma.tolist(), out / "experts.png", top_k=top_k)
    print(f"figure: {out / 'experts.png'}")
    return out / "experts.png"


def served(probabilities: Tensor, *, top_k: int) -> Tensor:
    """1 where an expert is one of the k that a level uses, else 0: [L, n, N].

    Args:
        probabilities: [L, n, N].
        top_k: k.
    """
    chosen = probabilities.topk(top_k, dim=-1).indices
    return torch.zeros_like(probabilities).scatter(-1, chosen, 1.0)


def draw(probabilities: Tensor, sigma: Sequence[float], path: Path, *, top_k: int) -> None:
    """Probabilities and choices of the experts over the levels, one panel a layer, as a picture.

    Args:
        probabilities: [L, n, N].
        sigma: n levels, ascending.
        path: of the PNG.
        top_k: k.
    """
    n_layers, _, n_experts = probabilities.shape
    is_chosen = served(probabilities, top_k=top_k) > 0
    colours = [plt.get_cmap("tab10")(e % 10) for e in range(n_experts)]
    n_columns = min(4, n_layers)
    n_rows = -(-n_layers // n_columns)
    figure, all_axes = plt.subplots(
        n_rows, n_columns, figsize=(3.4 * n_columns, 2.8 * n_rows), squeeze=False, sharey=True
    )
    for axes in all_axes.flat[n_layers:]:
        axes.set_visible(False)
    for layer, axes in enumerate(all_axes.flat[:n_layers]):
        areas = axes.stackplot(sigma, probabilities[layer].T.tolist(), colors=colours, alpha=0.85)
        if layer == 0:
            names = [f"expert {e + 1}" for e in range(n_experts)]
            figure.legend(areas, names, loc="upper right", ncols=n_experts, fontsize=8)
        for e in range(n_experts):
            height = 1.06 + 0.07 * e
            line = [height if chosen else float("nan") for chosen in is_chosen[layer, :, e]]
            axes.plot(sigma, line, color=colours[e], lw=3, solid_capstyle="butt")
        axes.set(xscale="log", xlim=(sigma[0], sigma[-1]), ylim=(0, 1.05 + 0.07 * n_experts))
        axes.set_title(f"layer {layer + 1}", fontsize=9)
        axes.set_yticks([0, 0.5, 1])
        axes.set_xlabel("sigma")
    all_axes[0][0].set_ylabel("probability; above: chosen")
    figure.suptitle(f"experts over noise levels, {top_k} of {n_experts} chosen", fontsize=10, x=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Entry point."""
    entry("experts", run)


if __name__ == "__main__":
    main()
