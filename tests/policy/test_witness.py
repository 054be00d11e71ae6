"""Where predictions stopped being finite is told without reading them."""

import pytest
import torch

from policy.witness import Witness


def broken_below(level, row):
    def denoiser(x, sigma, cond):
        broken = (torch.arange(len(x)) % 3 == row) & (sigma[:, 0] < level)
        return torch.where(broken[:, None, None], torch.nan, x)

    return denoiser


def test_first_level_of_each_row_is_remembered():
    witness = Witness(broken_below(1.0, row=1), rows=3)
    for level in (2.0, 0.9, 0.5):
        witness(torch.zeros(3, 4, 2), torch.full((3, 4), level), torch.zeros(3, 1))
    assert witness.sigma_of_fault() == pytest.approx([0, 0.9, 0])


def test_several_chunks_per_row_count_for_the_row():
    witness = Witness(broken_below(1.0, row=2), rows=3)
    sigma = torch.tensor([2.0, 0.7]).repeat_interleave(3)[:, None].expand(6, 4)
    witness(torch.zeros(6, 4, 2), sigma, torch.zeros(6, 1))
    assert witness.sigma_of_fault() == pytest.approx([0, 0, 0.7])


def test_predictions_pass_unchanged():
    x = torch.randn(3, 4, 2)
    witness = Witness(lambda x, sigma, cond: 2 * x, rows=3)
    assert torch.equal(witness(x, torch.ones(3, 4), torch.zeros(3, 1)), 2 * x)
    assert witness.sigma_of_fault() == [0, 0, 0]


def test_the_level_is_that_of_the_faulty_action():
    def broken(x, sigma, cond):
        return torch.where(sigma[..., None] == 0.1, torch.nan, x)

    witness = Witness(broken, rows=1)
    witness(torch.zeros(1, 3, 2), torch.tensor([[0.1, 1.0, 20.0]]), torch.zeros(1, 1))
    assert witness.sigma_of_fault() == pytest.approx([0.1])


def test_a_row_without_calls_has_no_fault():
    assert Witness(lambda x, sigma, cond: x, rows=2).sigma_of_fault() == [0, 0]


def test_calls_of_several_sizes_count_in_their_order():
    witness = Witness(broken_below(1.0, row=0), rows=3)
    two = torch.tensor([0.8, 0.7]).repeat_interleave(3)[:, None].expand(6, 4)
    witness(torch.zeros(6, 4, 2), two, torch.zeros(6, 1))
    witness(torch.zeros(3, 4, 2), torch.full((3, 4), 0.9), torch.zeros(3, 1))
    assert witness.sigma_of_fault() == pytest.approx([0.8, 0, 0])
