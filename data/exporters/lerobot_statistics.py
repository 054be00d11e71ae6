"""Statistics as LeRobot keeps them: of every episode, and of the data set from those.

Shape legend: `L` steps of an episode, `H W C` height, width and channels.

Differences from LeRobot's own:

1. They are exact. LeRobot takes quantiles from histograms of 5,000 bins, and what it says of
   pictures from a sample of them, made smaller; the squares of their points overflow in LeRobot
   0.4.4, so that its standard deviations of pictures are too small.
2. Quantiles of the data set are, as in LeRobot, the means of those of the episodes, weighted by
   their steps; mean, standard deviation and limits are those of all steps.
"""

from collections.abc import Mapping

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Statistics = dict[str, np.ndarray]  # "min", "max", "mean", "std", "count" and the quantiles


def statistics_of(values: np.ndarray) -> Statistics:
    """Statistics of each element of [L, ...] numbers, over the steps."""
    wide = values.astype(np.float64)
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": wide.mean(axis=0),
        "std": wide.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def picture_statistics(pictures: np.ndarray) -> Statistics:
    """Statistics of the red, green and blue of [L, H, W, C] uint8, scaled to 0..1.

    As in LeRobot they have the shape [3, 1, 1] of any picture: one in grey has three equal
    channels, and opacity is left out.
    """
    n_channels = min(pictures.shape[3], 3)
    levels = np.arange(256) / 255
    by_channel = []
    for channel in range(n_channels):
        counts = np.bincount(pictures[..., channel].reshape(-1), minlength=256)
        mean = (counts * levels).sum() / counts.sum()
        seen = levels[counts > 0]
        by_channel.append(
            {
                "min": seen[0],
                "max": seen[-1],
                "mean": mean,
                "std": np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()),
                **{name: _quantile(counts, levels, part) for name, part in QUANTILES.items()},
            }
        )
    statistics = {
        name: np.resize([of[name] for of in by_channel], (3, 1, 1)) for name in by_channel[0]
    }
    return {**statistics, "count": np.array([len(pictures)])}


def _quantile(counts: np.ndarray, levels: np.ndarray, part: float) -> float:
    """Quantile of numbers given by how often each level occurs, linear between two of them."""
    place = part * (counts.sum() - 1)
    ends = np.cumsum(counts)
    low, high = np.searchsorted(ends, [np.floor(place), np.ceil(place)], side="right")
    return levels[low] + (place - np.floor(place)) * (levels[high] - levels[low])


class DataSetStatistics:
    """Statistics of all episodes, from those of each."""

    def __init__(self):
        self._all: dict[str, Statistics] = {}

    def add(self, episode: Mapping[str, Statistics]) -> None:
        """Take in an episode: feature -> statistics."""
        for key, new in episode.items():
            old = self._all.get(key)
            self._all[key] = dict(new) if old is None else _joined(old, new)

    def to_json(self) -> dict[str, dict[str, list]]:
        """Feature -> statistic -> numbers."""
        return {
            key: {name: values.tolist() for name, values in statistics.items()}
            for key, statistics in self._all.items()
        }


def _joined(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of two sets of steps together (Chan et al. 1979)."""
    n_a, n_b = float(a["count"][0]), float(b["count"][0])
    share = n_b / (n_a + n_b)
    apart = b["mean"] - a["mean"]
    variance = (1 - share) * a["std"] ** 2 + share * b["std"] ** 2
    variance = variance + share * (1 - share) * apart**2
    return {
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "mean": a["mean"] + share * apart,
        "std": np.sqrt(variance),
        "count": a["count"] + b["count"],
        **{name: a[name] + share * (b[name] - a[name]) for name in QUANTILES},
    }
