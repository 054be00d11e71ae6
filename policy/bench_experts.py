"""Measure what experts cost: with levels bound beforehand or not, and against a dense network.

    cadence bench_experts               # the small one
    cadence bench_experts net=moe       # the size of MoDE

One call at batch 1, the calls of all variants taking turns over the levels of a grid. The dense
network is the same transformer with a SwiGLU layer of as many hidden features as the experts of a
token have together. Multiply-adds are those of all matrix products with weights; those of queries
with keys and of weights with values, some per cent, are left out of all variants. A token counts
with the experts that it uses: "all at once" is how they are computed where tokens cannot be sorted,
as on a GPU. Prints a table and writes bench_experts.json.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from policy.durable import write_json
from policy.entry import entry, out_dir, pick_device, use_threads
from policy.fingerprint import fingerprint
from policy.nets.experts import Experts

WARM_UP = 3  # calls


def build(cfg: DictConfig, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The configured network and its dense twin, with random weights.

    Raises:
        ValueError: the network is not a transformer with experts.
    """
    node = cfg.net.get("net", cfg.net)  # A prior over experts costs nothing outside of training.
    settings = node.get("feed_forward")
    if settings is None or not settings.get("_target_", "").endswith(".Experts"):
        raise ValueError(
            f"net is {node._target_} without experts as its feed_forward: choose net=moe_small "
            f"or net=moe"
        )
    sizes = {name: cfg[name] for name in ("action_size", "cond_size", "pred_horizon")}
    torch.manual_seed(cfg.seed)
    with device:
        net = instantiate(node)(**sizes).eval()
    layer = next(module for module in net.modules() if isinstance(module, Experts))
    n_used = layer.top_k + (layer.shared is not None)
    dense = {
        "_target_": "policy.nets.attention.SwiGLUFeedForward",
        "_partial_": True,
        "expansion": n_used * layer.down.shape[1] / layer.down.shape[2],
    }
    plain_node = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain_node, dict)
    with device:
        twin = instantiate({**plain_node, "feed_forward": dense})(**sizes).eval()
    return net, twin


def weights_of_a_token(net: nn.Module) -> int:
    """Weights that a token uses when the routers have decided."""
    unused = 0
    for module in net.modules():
        if isinstance(module, Experts):
            share = 1 - module.top_k / len(module.up)
            unused += round(share * (module.up.numel() + module.down.numel()))
            unused += sum(parameter.numel() for parameter in module.router.parameters())
    return sum(parameter.numel() for parameter in net.parameters()) - unused


def multiply_adds(call: Callable[[], object]) -> int:
    """Of the matrix products with weights in a call."""

    def grouped(a: Any, b: Any, *_: object, out_shape: Any = None, **__: object) -> int:
        return 2 * a[0] * a[1] * b[-1]  # Each row of a with one matrix of b.

    # The counter does not know the product of the sorted tokens.
    packet = getattr(torch.ops.aten, "_grouped_mm", None)
    mapping: Any = {} if packet is None else {packet: grouped}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    # Attention is counted on some devices only.
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if "attention" not in str(op)) // 2


def taking_turns(
    variants: Mapping[str, Callable[[int], Tensor]], *, repeats: int
) -> dict[str, dict[str, float]]:
    """Milliseconds until a call's result is on the host, the variants' calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(WARM_UP + repeats):
        for name, call in variants.items():
            start = time.perf_counter()
            call(i).cpu()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {f"p{q}_ms": float(np.percentile(ms[WARM_UP:], q)) for q in (50, 95, 99)}
        for name, ms in times.items()
    }


@torch.no_grad()
def run(cfg: DictConfig) -> dict:
    """Measure as configured; returns what bench_experts.json holds."""
    for name in ("action_size", "cond_size", "pred_horizon", "n_levels", "repeats"):
        if cfg[name] < 1:
            raise ValueError(f"{name} is {cfg[name]}, it must be at least 1")
    if not 0 < cfg.sigma_min <= cfg.sigma_max:
        raise ValueError(
            f"sigma_min is {cfg.sigma_min} and sigma_max {cfg.sigma_max}: need 0 < sigma_min <= "
            f"sigma_max"
        )
    use_threads(cfg.threads)
    device = pick_device(cfg.device)
    net, twin = build(cfg, device)
    out = out_dir(cfg, "bench_experts")
    x = torch.randn(1, cfg.pred_horizon, cfg.action_size, device=device)
    cond = torch.randn(1, cfg.cond_size, device=device)
    lowest, highest = (10 * np.log(sigma) for sigma in (cfg.sigma_min, cfg.sigma_max))
    grid = torch.linspace(highest, lowest, cfg.n_levels, device=device)
    levels = [level.expand(cfg.pred_horizon) for level in grid]

    def plain(one: Any) -> Callable[[int], Tensor]:
        return lambda i: one(x, levels[i % len(levels)][None], cond)

    def bound(one: Any) -> Callable[[int], Tensor]:
        calls = [one.at(level) for level in levels]
        return lambda i: calls[i % len(calls)](x, cond)

    variants = {
        "experts": plain(net),
        "experts, levels bound": bound(net),
        "dense": plain(twin),
        "dense, levels bound": bound(twin),
    }
    rows = taking_turns(variants, repeats=cfg.repeats)
    for name, call in variants.items():
        one = twin if name.startswith("dense") else net
        rows[name]["multiply_adds"] = multiply_adds(lambda call=call: call(0))
        rows[name]["weights"] = sum(parameter.numel() for parameter in one.parameters())
        rows[name]["weights_of_a_token"] = weights_of_a_token(one)
    print(f"{'batch 1, ' + str(device):<24}{'p50':>9}{'p95':>9}{'p99 ms':>9}{'M mult-adds':>13}")
    for name, row in rows.items():
        shown = "".join(f"{row[key]:>9.2f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
        print(f"{name:<24}{shown}{row['multiply_adds'] / 1e6:>13,.1f}")
    results = {
        "rows": rows,
        "repeats": cfg.repeats,
        "device": str(device),
        "dtype": "float32",
        "fingerprint": fingerprint(),
    }
    write_json(out / "bench_experts.json", results)
    return results


def main() -> None:
    """Entry point."""
    entry("bench_experts", run)


if __name__ == "__main__":
    main()
