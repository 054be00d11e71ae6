"""Anchors are the centres of clusters."""

import pytest
import torch

from data.anchors import _means, fit_anchors

TP, DA = 3, 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clustered(n_clusters=5, each=20, width=0.01):
    """Chunks around centres that lie far apart, in random order."""
    centres = 10.0 * torch.arange(n_clusters)[:, None, None].expand(n_clusters, TP, DA)
    spread = width * torch.randn(n_clusters, each, TP, DA, generator=seeded())
    chunks = (centres[:, None] + spread).flatten(0, 1)
    means = torch.stack([chunks[i * each : (i + 1) * each].mean(dim=0) for i in range(n_clusters)])
    return chunks[torch.randperm(len(chunks), generator=seeded(1))], means


def shapeless(n=400):
    return torch.randn(n, TP, DA, generator=seeded(2))


@pytest.mark.parametrize("seed", range(10))
def test_clusters_far_apart_are_found_exactly(seed):
    chunks, means = clustered()
    anchors = fit_anchors(chunks, 5, generator=seeded(seed))
    order = anchors[:, 0, 0].argsort()
    torch.testing.assert_close(anchors[order], means, rtol=0, atol=1e-5)


def test_every_anchor_is_the_mean_of_the_chunks_nearest_to_it():
    chunks = shapeless()
    anchors = fit_anchors(chunks, 12, generator=seeded())
    assert anchors.shape == (12, TP, DA)
    assert anchors.dtype == chunks.dtype
    nearest = (chunks[:, None] - anchors).square().sum(dim=(2, 3)).argmin(dim=1)
    for index, anchor in enumerate(anchors):
        mine = chunks[nearest == index]
        assert len(mine)
        torch.testing.assert_close(anchor, mine.mean(dim=0), rtol=0, atol=1e-5)


def test_it_is_a_function_of_the_seed():
    chunks = shapeless()
    once, again = (fit_anchors(chunks, 8, generator=seeded(3)) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, fit_anchors(chunks, 8, generator=seeded(4)))


def test_one_anchor_is_the_mean_and_as_many_as_chunks_are_the_chunks():
    chunks = shapeless(30)
    one = fit_anchors(chunks, 1, generator=seeded())
    torch.testing.assert_close(one[0], chunks.mean(dim=0), rtol=0, atol=1e-6)
    every = fit_anchors(chunks, 30, generator=seeded())
    order = every[:, 0, 0].argsort()
    assert torch.equal(every[order], chunks[chunks[:, 0, 0].argsort()])


def test_chunks_that_are_equal_share_an_anchor():
    places = torch.tensor([0.0, 1.0, 5.0])
    chunks = places[[0] * 50 + [1] * 50 + [2]][:, None, None].expand(101, TP, DA)
    for seed in range(20):
        anchors = fit_anchors(chunks, 3, generator=seeded(seed))
        assert sorted(anchors[:, 0, 0].tolist()) == [0.0, 1.0, 5.0]


def test_an_empty_cluster_takes_the_farthest_chunk():
    points = torch.tensor([[0.0], [1.0], [9.0]], dtype=torch.float64)
    nearest = torch.tensor([0, 0, 0])
    distances = torch.tensor([[0.0, 99.0], [1.0, 99.0], [9.0, 99.0]], dtype=torch.float64)
    assert _means(points, nearest, distances)[:, 0].tolist() == pytest.approx([10 / 3, 9.0])


@pytest.mark.parametrize("n_anchors", [0, 31])
def test_impossible_number_of_anchors_is_refused(n_anchors):
    with pytest.raises(ValueError, match=rf"n_anchors is {n_anchors}, there are 30 chunks"):
        fit_anchors(shapeless(30), n_anchors, generator=seeded())


def test_too_few_different_chunks_are_refused():
    chunks = torch.tensor([1.0, 2.0]).repeat(10)[:, None, None].expand(20, TP, DA)
    with pytest.raises(ValueError, match="only 2 of the 20 chunks differ: give at most 2"):
        fit_anchors(chunks, 3, generator=seeded())


def test_a_chunk_that_is_not_finite_is_refused():
    chunks = shapeless(5)
    chunks[3, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="a chunk is not finite"):
        fit_anchors(chunks, 2, generator=seeded())
