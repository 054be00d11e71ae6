"""Settings of every test."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small operations are fastest on one thread, also beside other loads."""
    torch.set_num_threads(1)
