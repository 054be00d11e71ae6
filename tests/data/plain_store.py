"""Stores of format_version 1, as earlier programs made them: no shards, no checksums."""

from pathlib import Path

import numpy as np
import zarr

from data.types import Contract


def plain_store(path: Path, contract: Contract) -> Path:
    """An empty one."""
    group = zarr.create_group(path, zarr_format=3)
    for name, field in contract.fields.items():
        group.create_array(
            f"data/{name}",
            shape=(0, *field.shape),
            chunks=(8, *field.shape),
            dtype=field.dtype,
            fill_value=np.nan if np.dtype(field.dtype).kind == "f" else 0,
        )
    group.create_array("meta/episode_ends", shape=(0,), chunks=(1024,), dtype="int64", fill_value=0)
    group.create_array("meta/episode_metadata", shape=(0,), chunks=(256,), dtype=str)
    group.attrs.put({"format_version": 1, "contract": contract.to_json()})
    return path
