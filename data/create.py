"""Makes the folder of a new store."""

import shutil
import uuid
from pathlib import Path

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from data.codec import Codec, Lossless, create_array
from data.commit import Commit, attributes_with
from data.durable import flush
from data.layout import FORMAT_VERSION, StoreError
from data.location import zarr_store
from data.types import Contract


def create_folder(path: Path, contract: Contract, *, codec: Codec | None, shard_bytes: int) -> None:
    """Make a new, empty store; see `EpisodeStore.create`."""
    check_free(path)
    # Built aside and renamed, so that an interrupted creation leaves no half of a store.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
        group = _write_empty(draft, contract, codec=codec, shard_bytes=shard_bytes)
        attributes = {"format_version": FORMAT_VERSION, "contract": contract.to_json()}
        group.attrs.put(attributes_with(attributes, Commit()))
        flush(draft, (file for file in draft.rglob("*") if file.is_file()))
        draft.rename(path)
        flush(path.parent, [path / "zarr.json"])
    except OSError as error:
        raise StoreError(
            f"{path} cannot be created: {error.strerror or error}: choose another place"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_free(path: Path) -> None:
    """Raise StoreError where no new store can be: where something is, and within a store."""
    if path.exists():
        raise StoreError(f"{path} exists already: choose another path, or append to what is there")
    for parent in path.absolute().parents:
        if (parent / "zarr.json").exists() or (parent / ".zgroup").exists():
            raise StoreError(f"{path} lies within the store {parent}: choose a path outside of it")


def _write_empty(
    path: Path, contract: Contract, *, codec: Codec | None, shard_bytes: int
) -> zarr.Group:
    """The group and its arrays of length 0, in the newest layout.

    Args:
        path: of an empty folder.
        contract: whose fields the store is for.
        codec: of images, None for no loss; other fields are always kept without loss.
        shard_bytes: of numbers in a file.

    Raises:
        StoreError: the codec cannot hold an image, or there are none.
    """
    group = zarr.create_group(zarr_store(path, read_only=False), zarr_format=3)
    has_images = any(field.is_image for field in contract.fields.values())
    if codec is not None and codec.is_lossy and not has_images:
        raise StoreError(f"codec is {codec}, but the contract has no image: leave it out")
    for name, field in contract.fields.items():
        chosen = codec if codec is not None and field.is_image else Lossless()
        try:
            create_array(group, f"data/{name}", field, chosen, shard_bytes=shard_bytes)
        except ValueError as error:
            raise StoreError(f"{name}: {error}") from error
    for name, steps, dtype in (
        ("episode_ends", 1024, "int64"),
        ("episode_metadata", 256, str),
        ("chunk_checksums", 16384, "uint32"),
    ):
        group.create_array(
            f"meta/{name}",
            shape=(0,),
            chunks=(steps,),
            dtype=dtype,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
        )
    return group
