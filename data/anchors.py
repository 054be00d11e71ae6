"""Anchors: a few chunks that stand for many, the centres of their clusters.

Sources: Lloyd 1982, Least squares quantization in PCM; Arthur and Vassilvitskii 2007, k-means++.

Differences from the papers: a cluster that runs empty starts anew at the chunk that is farthest
from its own anchor.

Shape legend: `n` chunks, `M` anchors, `Tp` actions of a chunk, `Da` action size.
"""

import torch
from torch import Tensor


def fit_anchors(
    chunks: Tensor, n_anchors: int, *, generator: torch.Generator, max_rounds: int = 300
) -> Tensor:
    """Centres [M, Tp, Da] of the clusters of chunks, by k-means.

    Each is the mean of the chunks that are nearest to it, unless `max_rounds` ended the search.

    Args:
        chunks: [n, Tp, Da], scaled so that distances mean something.
        n_anchors: M.
        generator: of the start, on the chunks' device.
        max_rounds: limit of the rounds of assigning and averaging.

    Raises:
        ValueError: there are not so many different chunks, or a chunk is not finite.
    """
    if not 1 <= n_anchors <= len(chunks):
        raise ValueError(
            f"n_anchors is {n_anchors}, there are {len(chunks)} chunks: give 1..{len(chunks)}"
        )
    if not chunks.isfinite().all():
        raise ValueError("a chunk is not finite: look for its episode with cadence doctor")
    points = chunks.flatten(1).double()
    centres = _spread(points, n_anchors, generator)
    assigned = None
    for _ in range(max_rounds):
        distances = _distances(points, centres)
        nearest = distances.argmin(dim=1)
        if assigned is not None and torch.equal(nearest, assigned):
            break
        centres, assigned = _means(points, nearest, distances), nearest
    return centres.to(chunks.dtype).unflatten(1, chunks.shape[1:])


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """[n, M], exactly 0 between equal points, which a matrix product would not give."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")


def _spread(points: Tensor, n_anchors: int, generator: torch.Generator) -> Tensor:
    """Points [M, Tp Da] drawn one by one, each by its squared distance to those before it."""
    first = torch.randint(len(points), (1,), generator=generator, device=points.device)
    drawn = [points[first]]
    squared = _distances(points, drawn[0])[:, 0] ** 2
    while len(drawn) < n_anchors:
        if not squared.any():
            raise ValueError(
                f"n_anchors is {n_anchors}, but only {len(drawn)} of the {len(points)} chunks "
                f"differ: give at most {len(drawn)}"
            )
        drawn.append(points[torch.multinomial(squared, 1, generator=generator)])
        squared = squared.minimum(_distances(points, drawn[-1])[:, 0] ** 2)
    return torch.cat(drawn)


def _means(points: Tensor, nearest: Tensor, distances: Tensor) -> Tensor:
    """Means [M, Tp Da] of the clusters; an empty one begins anew at a point far from its centre."""
    n_anchors = distances.shape[1]
    counts = torch.bincount(nearest, minlength=n_anchors)
    sums = points.new_zeros(n_anchors, points.shape[1]).index_add_(0, nearest, points)
    means = sums / counts.clamp(min=1)[:, None]
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        farthest = distances.gather(1, nearest[:, None])[:, 0].topk(len(empty)).indices
        means[empty] = points[farthest]
    return means
