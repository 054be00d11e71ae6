"""Fit what samplers start from to a checkpoint: grids of noise levels, and anchors.

    cadence fit checkpoint=outputs/train/latest store.path=outputs/collect/latest/store.zarr
    cadence evaluate checkpoint=outputs/train/latest env=pillar sampler=fitted sampler.n_steps=4
    cadence evaluate checkpoint=outputs/train/latest env=pillar sampler=anchored

A grid of few steps is chosen among the levels of a reference of many, so that DDIM over it ends
where the reference ends. What is gained is then measured by sampling with both, for each grid and
for the Karras grid of as many steps: root mean square distance to the reference's chunks from the
same noise, in the network's scale. Anchors are the centres of the clusters of the store's chunks.

Writes sampling.safetensors into the checkpoint's folder, whose other files stay as they are; an
earlier fit is replaced. Give the store that the checkpoint was trained on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from data.anchors import fit_anchors
from data.dataset import WindowDataset
from policy.build import check_targets, from_checkpoint, trained_levels
from policy.checkpoint import LoadedCheckpoint, load
from policy.diffusion.grid_fit import Trajectory, fit_grids, trajectory
from policy.diffusion.noise import randn
from policy.diffusion.schedule import karras
from policy.entry import entry, pick_device, use_threads
from policy.model import DiffusionPolicy
from policy.progress import progress_bar
from policy.sampler_fit import FILE, SamplerFit, save_fit
from policy.types import Denoiser

RHO = 7.0  # of the Karras grids, as in configs/sampler
WINDOWS_AT_ONCE = 4096  # read from the store


@dataclass(frozen=True)
class Start:
    """What every grid is tried from.

    Args:
        denoiser: of the checkpoint.
        cond: [M, C] encoded observations.
        noise: [M, Tp, Da] standard normal.
    """

    denoiser: Denoiser
    cond: Tensor
    noise: Tensor

    def sample(self, grid: Tensor, *, tick: Callable[[], object]) -> Trajectory:
        """The way of DDIM down a grid; calls `tick` at every step.

        Raises:
            ValueError: a prediction is not finite.
        """

        def counted(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
            tick()
            return self.denoiser(x, sigma, cond)

        way = trajectory(counted, self.cond, grid[0] * self.noise, grid)
        if not way.end.isfinite().all():
            raise ValueError(
                "the denoiser's predictions are not finite: check the checkpoint (cadence doctor)"
            )
        return way


@torch.no_grad()
def run(cfg: DictConfig) -> Path:
    """Fit as configured; returns the file that was written."""
    n_steps = checked_steps(cfg)
    use_threads(cfg.threads)
    device = pick_device(cfg.device)
    loaded = load(cfg.checkpoint)
    policy = from_checkpoint(loaded).to(device).eval()
    dataset = open_windows(cfg, loaded)
    generator = torch.Generator().manual_seed(cfg.seed)  # on the CPU: the same on every device
    start = draw_start(policy, dataset, cfg.n_windows, generator, device=device)
    grids = fit_and_compare(start, n_steps, cfg.n_reference, levels(cfg, loaded))
    chunks = all_chunks(policy, dataset).cpu()
    print(f"clustering {len(chunks)} chunks")
    anchors = fit_anchors(chunks, cfg.n_anchors, generator=generator)
    print(f"anchors: {cfg.n_anchors}, {distance_to_nearest(chunks, anchors):.4f} from the chunks")
    if (loaded.path / FILE).exists():
        print(f"the earlier fit in {loaded.path} is replaced")
    file = save_fit(loaded.path, SamplerFit(grids, anchors))
    print(f"fit: {file}")
    return file


def checked_steps(cfg: DictConfig) -> list[int]:
    """The numbers of steps that grids are wanted of.

    Raises:
        ValueError: a setting is impossible.
    """
    for name in ("n_reference", "n_windows", "n_anchors"):
        if cfg[name] < 1:
            raise ValueError(f"{name} is {cfg[name]}, it must be at least 1")
    if not 0 < cfg.sigma_min < cfg.sigma_max:
        raise ValueError(
            f"sigma_min is {cfg.sigma_min} and sigma_max {cfg.sigma_max}: "
            f"need 0 < sigma_min < sigma_max"
        )
    # An empty list would drop the grids of an earlier fit.
    if not isinstance(cfg.n_steps, ListConfig) or not cfg.n_steps:
        raise ValueError(f"n_steps is {cfg.n_steps!r}, give a list such as n_steps=[2,4,8]")
    for n in cfg.n_steps:
        if type(n) is not int or not 1 <= n <= cfg.n_reference:
            raise ValueError(
                f"n_steps holds {n!r}: give whole numbers in 1..{cfg.n_reference} (n_reference)"
            )
    return sorted(set(cfg.n_steps))


def open_windows(cfg: DictConfig, loaded: LoadedCheckpoint) -> WindowDataset:
    """All windows of the store, where it holds what the checkpoint was trained on.

    Raises:
        ContractError: it does not; the message names both sides.
        ValueError: it has fewer windows than are wanted.
    """
    store = instantiate(cfg.store)
    this, that = f"checkpoint {cfg.checkpoint}", f"store {store.path}"
    cfg_trained = OmegaConf.create({"goals": loaded.config.get("goals")})
    check_targets(cfg_trained, ("data.goals",))
    dataset = WindowDataset(store, loaded.horizons, goals=instantiate(cfg_trained.goals))
    loaded.contract.check(dataset.contract, this=this, that=that)
    print(f"store: {store.path}: {dataset.report}")
    if store.digest(notes=dataset.reading.cache) != loaded.store_digest:
        print(f"note: {this} was trained on another store, or this one has changed since")
    for name in ("n_windows", "n_anchors"):
        if cfg[name] > len(dataset):
            raise ValueError(
                f"{name} is {cfg[name]}, {that} has {len(dataset)} windows: give 1..{len(dataset)}"
            )
    return dataset


def levels(cfg: DictConfig, loaded: LoadedCheckpoint) -> tuple[float, float]:
    """Lowest and highest noise level of the reference: the configured ones that were trained."""
    # Not by `chunk_space`, which reads the earlier fit: a damaged one is to be replaced.
    trained_min, trained_max = trained_levels(loaded.config)
    return max(cfg.sigma_min, trained_min), min(cfg.sigma_max, trained_max)


def draw_start(
    policy: DiffusionPolicy,
    dataset: WindowDataset,
    n_windows: int,
    generator: torch.Generator,
    *,
    device: torch.device,
) -> Start:
    """Observations drawn from all windows, and noise for each."""
    indices = torch.randperm(len(dataset), generator=generator)[:n_windows]
    batch = dataset.batch(indices, generator)
    cond = policy.encode({name: value.to(device) for name, value in batch.observation.items()})
    shape = policy.chunk(batch.action.to(device), batch.observation).shape
    return Start(policy, cond, randn(shape, generator).to(device))


def fit_and_compare(
    start: Start, n_steps: Sequence[int], n_reference: int, levels: tuple[float, float]
) -> Mapping[int, Tensor]:
    """A grid for each number of steps; prints how far off it and the Karras grid end.

    Args:
        start: what the grids are tried from.
        n_steps: of the grids.
        n_reference: of the reference.
        levels: lowest and highest of the reference.
    """
    sigma_min, sigma_max = levels

    def usual(n: int) -> Tensor:
        return karras(n, sigma_min=sigma_min, sigma_max=sigma_max, rho=RHO)

    lines = []
    with progress_bar(total=n_reference + 2 * sum(n_steps), unit="step") as bar:
        reference = start.sample(usual(n_reference), tick=bar.update)
        grids = fit_grids(reference, n_steps)
        for n, grid in grids.items():
            fitted, other = (
                distance(start.sample(one, tick=bar.update).end, reference.end)
                for one in (grid, usual(n))
            )
            shown = " ".join(f"{sigma:.3g}" for sigma in grid.tolist())
            lines.append(f"  {n} steps: fitted {fitted:.4f}, karras {other:.4f}; levels {shown}")
    print(f"distance to the chunks of {n_reference} steps, {len(start.cond)} observations:")
    print("\n".join(lines))
    return {n: grid.cpu() for n, grid in grids.items()}


def distance(x: Tensor, other: Tensor) -> float:
    """Root mean square distance of an element."""
    return (x - other).square().mean().sqrt().item()


def all_chunks(policy: DiffusionPolicy, dataset: WindowDataset) -> Tensor:
    """The chunks [n, Tp, Da] of all windows in the network's scale."""
    device = next(policy.parameters()).device
    parts = torch.arange(len(dataset)).split(WINDOWS_AT_ONCE)
    batches = (dataset.batch(part) for part in parts)
    return torch.cat([policy.chunk(b.action.to(device), b.observation) for b in batches])


def distance_to_nearest(chunks: Tensor, anchors: Tensor) -> float:
    """Root mean square distance of an element from its chunk's nearest anchor."""
    nearest = torch.cdist(chunks.flatten(1), anchors.flatten(1)).amin(dim=1)
    return (nearest.square().mean() / chunks[0].numel()).sqrt().item()


def main() -> None:
    """Entry point."""
    entry("fit", run)


if __name__ == "__main__":
    main()
