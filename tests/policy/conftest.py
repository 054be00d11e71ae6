"""What several tests of verbs start from."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from data.record import contract_of
from data.store import EpisodeStore
from policy.entry import compose_config
from policy.train import prepare


@pytest.fixture(scope="session")
def pillar_checkpoint(tmp_path_factory) -> Path:
    """An untrained policy for the pillar; not to be changed."""
    folder = tmp_path_factory.mktemp("pillar")
    env = gymnasium.make("envs.pillar:cadence/Pillar-v0")
    contract = contract_of(env)
    env.close()
    store = EpisodeStore.create(folder / "store.zarr", contract)
    rng = np.random.default_rng(0)
    for _ in range(3):
        store.append(
            {
                name: rng.uniform(-0.2, 0.2, (20, *field.shape)).astype(field.dtype)
                for name, field in contract.fields.items()
            }
        )
    settings = ["net.channels=[8,16]", "precision=fp32", "batch_size=8", "holdout=0", "threads=1"]
    cfg = compose_config("train", [f"store.path={store.path}", "device=cpu", *settings])
    prepare(cfg, store, folder / "run").save()
    return folder / "run"
