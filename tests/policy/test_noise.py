"""Noise per stream."""

import pytest
import torch

from policy.diffusion.noise import Tape, device_of, gumbel, randn


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_noise_of_a_stream_does_not_depend_on_its_neighbours():
    together = randn((3, 4, 2), generators(5, 6, 7))
    swapped = randn((2, 4, 2), generators(7, 6))
    assert torch.equal(together[1], swapped[1])
    assert torch.equal(together[2], swapped[0])
    assert not torch.equal(together[0], together[1])


def test_one_generator_serves_a_batch_and_moves_on():
    generator = torch.Generator().manual_seed(1)
    first, second = randn((2000, 3), generator), randn((2000, 3), generator)
    assert not torch.equal(first, second)
    # 6000 draws: the mean is within 4 / sqrt(6000), the deviation within 4 / sqrt(12000).
    assert abs(first.mean().item()) < 0.052
    assert abs(first.std().item() - 1) < 0.037


def test_device_is_the_generators():
    assert device_of(torch.Generator()) == device_of(generators(1, 2)) == torch.device("cpu")


def test_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="2 generators for 3 streams"):
        randn((3, 4), generators(1, 2))


def test_a_tape_hands_out_noise_in_order():
    first, second = torch.randn(2, 3), torch.randn(2, 4)
    tape = Tape([first, second])
    assert torch.equal(randn((2, 3), tape), first)
    with pytest.raises(ValueError, match="drawn 1 times, 2 were drawn beforehand"):
        tape.check_end()
    assert torch.equal(randn((2, 4), tape), second)
    tape.check_end()
    assert device_of(tape) == torch.device("cpu")


def test_an_empty_tape_notes_what_is_asked_for():
    tape = Tape()
    assert not randn((2, 3), tape).any()
    gumbel((3, 2), tape)
    assert tape.shapes == [(2, 3), (3, 2)]
    tape.check_end()


def test_a_tape_refuses_other_noise():
    with pytest.raises(ValueError, match=r"shape \(2, 4\) is drawn, \(2, 3\) was drawn"):
        randn((2, 4), Tape([torch.zeros(2, 3)]))
    tape = Tape([torch.zeros(2)])
    randn((2,), tape)
    with pytest.raises(ValueError, match=r"drawn a 2\. time, 1 were drawn"):
        randn((2,), tape)
