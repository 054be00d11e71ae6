"""Draw which experts of a checkpoint serve which noise levels.

    cadence experts checkpoint=outputs/train/latest
    cadence experts checkpoint=outputs/train/latest sigma_max=80 out=figures

One panel a layer: the probabilities of the experts over sigma, and above them the experts that an
action of such a level uses. Writes experts.png, and experts.json with the share of the levels (even
on a logarithmic scale) that each expert of a layer serves.

Routers look at the noise level alone, so that this holds for every task, unless they see the
condition too (net.layers_see_cond). For those there is a panel for each expert: its probability
over sigma in each task that the policy is told, where all else that it observes is in the middle of
what it was trained on.

Shape legend: `L` layers, `n` levels, `N` experts, `k` chosen ones, `M` tasks, `C` condition size.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from omegaconf import DictConfig
from torch import Tensor

from data.joint_contract import TASK
from policy.build import from_checkpoint, trained_levels
from policy.checkpoint import load
from policy.durable import write_json
from policy.entry import entry, out_dir, pick_device
from policy.model import DiffusionPolicy
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
    sees_cond = any(getattr(module, "layers_see_cond", False) for module in policy.net.modules())
    told, conds = conditions(policy) if sees_cond else ([], [None])
    probabilities = torch.stack([usage(policy.net, c_noise, cond) for cond in conds]).cpu()
    top_k = next(m.top_k for m in policy.net.modules() if isinstance(m, Experts))
    out = out_dir(cfg, "experts")
    shares = served(probabilities, top_k=top_k).mean(dim=2)  # [M, L, N]
    written: dict = {"sigma": [lowest, highest], "served": shares.mean(dim=0).tolist()}
    for layer, row in enumerate(written["served"], start=1):
        print(f"layer {layer}: " + "  ".join(f"{share:.2f}" for share in row))
    if sees_cond:
        written["served_in_task"] = dict(zip(told, shares.tolist(), strict=True))
        draw_tasks(probabilities, sigma.tolist(), out / "experts.png", tasks=told)
        print(f"the mean over {len(told)} tasks: the routers see the condition")
    else:
        draw(probabilities[0], sigma.tolist(), out / "experts.png", top_k=top_k)
        print("the same in every task: the routers see nothing but the noise level")
    write_json(out / "experts.json", written)
    print(f"figure: {out / 'experts.png'}")
    return out / "experts.png"


def conditions(policy: DiffusionPolicy) -> tuple[list[str], Tensor]:
    """Names of the tasks that a policy is told, and a condition [M, 1, C] of each; or one unnamed.

    All else that is observed is in the middle of what the policy was trained on.
    """
    fields, normalizer = policy.contract.observation, policy.normalizer
    tasks = fields[TASK].frame.split(", ") if TASK in fields else ["all"]
    zeros = next(policy.parameters()).new_zeros(len(tasks), policy.horizons.obs)
    observation = {}
    if TASK in fields:
        is_task = torch.eye(len(tasks)).to(zeros)
        observation[TASK] = is_task[:, None].expand(-1, policy.horizons.obs, -1)
    sets = normalizer.sets_of(observation)
    for name, field in fields.items():
        if name != TASK:
            shape = field.shape if field.is_image else (normalizer.size(name),)
            middle = zeros.new_zeros(*zeros.shape, *shape)
            observation[name] = normalizer.unnormalize(name, middle, sets)
    return tasks, policy.encode(observation)[:, None]


def served(probabilities: Tensor, *, top_k: int) -> Tensor:
    """1 where an expert is one of the k that a level uses, else 0: [..., N].

    Args:
        probabilities: [..., N].
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


def draw_tasks(
    probabilities: Tensor, sigma: Sequence[float], path: Path, *, tasks: Sequence[str]
) -> None:
    """Probability of each expert over levels and tasks, a row of panels a layer, as a picture.

    Args:
        probabilities: [M, L, n, N].
        sigma: n levels, ascending.
        path: of the PNG.
        tasks: M names.
    """
    n_tasks, n_layers, _, n_experts = probabilities.shape
    height = 1 + 0.13 * n_tasks
    figure, all_axes = plt.subplots(
        n_layers,
        n_experts,
        figsize=(2 + 2.2 * n_experts, 0.6 + height * n_layers),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    # Edges of the cells: a level is in the middle of its own, on a logarithmic scale.
    half = (sigma[1] / sigma[0]) ** 0.5
    edges = [level / half for level in sigma] + [sigma[-1] * half]
    for layer, row in enumerate(all_axes):
        for e, axes in enumerate(row):
            panel = probabilities[:, layer, :, e].tolist()
            mesh = axes.pcolormesh(edges, range(n_tasks + 1), panel, vmin=0, vmax=1, cmap="viridis")
            axes.set_title(f"layer {layer + 1}, expert {e + 1}", fontsize=8)
        row[0].set_yticks([i + 0.5 for i in range(n_tasks)], tasks, fontsize=6)
    all_axes[0][0].set(xscale="log", xlim=(edges[0], edges[-1]))
    all_axes[0][0].invert_yaxis()
    for axes in all_axes[-1]:
        axes.set_xlabel("sigma")
    figure.colorbar(mesh, ax=all_axes, label="probability", shrink=0.5)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Entry point."""
    entry("experts", run)


if __name__ == "__main__":
    main()
