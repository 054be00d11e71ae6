"""Settings of every test."""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig

from policy import entry


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small operations are fastest on one thread, also beside other loads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """What is flushed is counted as on the disk: only a power cut would show the difference.

    That a flush comes where it must is told by tests that look at the calls.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # It still fails for what is not open.
        yield


@pytest.fixture(autouse=True, scope="session")
def _composed_once() -> Iterator[None]:
    """Files of configurations are read once, and a configuration that was composed is kept.

    Hydra reads all files anew for each of the suite's thousands of configurations, in 0.1 s.
    """
    with pytest.MonkeyPatch.context() as patch:
        for source in Plugins.instance().discover(ConfigSource):
            assert issubclass(source, ConfigSource)
            if source.scheme() in ("file", "pkg"):
                patch.setattr(source, "load_config", _read_once(source.load_config))
        patch.setattr(entry, "compose", _kept(entry.compose))
        yield


def _read_once(load: Callable[..., object]) -> Callable[..., object]:
    known: dict[tuple[str, str], bytes] = {}

    def load_config(source: ConfigSource, config_path: str) -> object:
        asked = source.path, config_path
        if asked not in known:
            known[asked] = pickle.dumps(load(source, config_path))
        return pickle.loads(known[asked])  # A copy, which may be changed.

    return load_config


def _kept(compose: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    known: dict[tuple[str, ...], bytes] = {}

    def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
        asked = name, *overrides
        if asked not in known:
            known[asked] = pickle.dumps(compose(name, overrides=list(overrides)))
        return pickle.loads(known[asked])

    return composed
