"""Statistics of episodes and of the data set, against numpy over all numbers."""

import numpy as np
import pytest

from data.exporters.lerobot_statistics import (
    QUANTILES,
    DataSetStatistics,
    picture_statistics,
    statistics_of,
)

ROUNDING = 1e-12  # of float64 sums of few numbers of size 1


def test_statistics_of_numbers_by_hand():
    found = statistics_of(np.array([[1.0, 10.0], [3.0, 10.0], [8.0, 10.0]], np.float32))
    assert found["min"].tolist() == [1, 10]
    assert found["max"].tolist() == [8, 10]
    assert found["mean"].tolist() == [4, 10]
    assert found["std"] == pytest.approx([np.sqrt((9 + 1 + 16) / 3), 0])
    assert found["count"].tolist() == [3]
    # 5 % of the way between the ends of [1, 3, 8], which are two steps apart, is 0.1 of the first.
    assert found["q50"].tolist() == [3, 10]
    assert found["q10"] == pytest.approx([1 + 0.2 * 2, 10])
    assert found["q90"] == pytest.approx([3 + 0.8 * 5, 10])


@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_statistics_of_pictures_are_those_of_all_their_points(n_channels):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 7, 9, n_channels), dtype=np.uint8)
    pictures[..., 0] //= 100
    found = picture_statistics(pictures)
    colours = pictures[..., :3] if n_channels > 1 else np.repeat(pictures, 3, axis=3)
    points = colours.reshape(-1, 3) / 255
    shape = (3, 1, 1)
    for name in ("min", "max", "mean", "std"):
        expected = getattr(points, name)(axis=0).reshape(shape)
        np.testing.assert_allclose(found[name], expected, atol=ROUNDING, rtol=ROUNDING)
    for name, part in QUANTILES.items():
        expected = np.quantile(points, part, axis=0).reshape(shape)
        np.testing.assert_allclose(found[name], expected, atol=ROUNDING, rtol=ROUNDING)
    assert found["count"].tolist() == [5]


def test_the_data_sets_statistics_are_those_of_all_steps():
    rng = np.random.default_rng(0)
    episodes = [rng.normal(n, 1 + n, (n, 3)).astype(np.float32) for n in (1, 5, 40, 2)]
    whole = DataSetStatistics()
    for values in episodes:
        whole.add({"x": statistics_of(values)})
    found = whole.to_json()["x"]
    values = np.concatenate(episodes).astype(np.float64)
    assert found["count"] == [48]
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(
            found[name], getattr(values, name)(axis=0), atol=ROUNDING, rtol=ROUNDING
        )
    lengths = [len(values) for values in episodes]
    for name in QUANTILES:
        each = [statistics_of(values)[name] for values in episodes]
        np.testing.assert_allclose(
            found[name], np.average(each, axis=0, weights=lengths), atol=ROUNDING, rtol=ROUNDING
        )


def test_features_may_be_of_any_shape():
    whole = DataSetStatistics()
    for number in range(2):
        whole.add({"x": statistics_of(np.full((3, 2, 2), number, np.float32))})
    assert whole.to_json()["x"]["mean"] == [[0.5, 0.5], [0.5, 0.5]]
