"""The benchmark runs; how fast is not for a test to say."""

import torch

from data.bench import measure_gather


def test_the_benchmark_gives_rates_and_restores_the_threads():
    n_threads = torch.get_num_threads()
    rates = measure_gather(seconds=0.01, n_images=200)
    assert rates.low_dim > 0
    assert rates.image_bytes == rates.image * 2 * 96 * 96 * 3
    assert torch.get_num_threads() == n_threads
