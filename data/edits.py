"""What was hidden and relabelled of a store after its episodes were written.

The episodes stay as they are, so an edit costs nothing and can be taken back, until a copy of the
store is made without what is hidden. All edits that apply are in one group of the store's `meta`,
whose name is their digest; the commit names it, so an edit is visible as a whole or not at all.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zarr

from data.layout import StoreError

PREFIX = "edit-"


@dataclass(frozen=True)
class Edits:
    """Changes to a store's episodes, by their number in the store, hidden ones counted.

    Args:
        hidden: episodes that are not shown.
        metadata: episode -> all of its metadata, in place of those that were recorded.
    """

    hidden: frozenset[int] = frozenset()
    metadata: Mapping[int, dict] = dataclasses.field(default_factory=dict)

    def to_text(self) -> str:
        """JSON form, "" for no changes."""
        if not self.hidden and not self.metadata:
            return ""
        metadata = {str(episode): entry for episode, entry in sorted(self.metadata.items())}
        return json.dumps({"hidden": sorted(self.hidden), "metadata": metadata}, sort_keys=True)

    def write(self, group: zarr.Group) -> str:
        """Keep the edits beside those that apply; returns their digest, which makes them apply.

        Raises:
            OSError: they cannot be written.
            StoreError: what is there already is damaged.
        """
        text = self.to_text()
        if not text:
            return ""
        digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            group.require_group("meta").require_group(f"{PREFIX}{digest}").attrs.put(
                {"edits": text}
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{group.store_path}/meta is damaged ({error}): restore its zarr.json from a copy"
            ) from error
        return digest


def read_edits(path: Path | str, group: zarr.Group, digest: str, *, n_episodes: int) -> Edits:
    """The edits of a digest, "" for none.

    Raises:
        StoreError: they are missing or damaged.
    """
    if not digest:
        return Edits()
    try:
        text = group[f"meta/{PREFIX}{digest}"].attrs["edits"]
    except MemoryError:
        raise
    except Exception as error:  # Zarr does not say what it raises of a damaged file.
        raise _damaged(path, digest, f"cannot be read ({type(error).__name__}: {error})") from error
    # The digest vouches for the form of what it is of.
    if not isinstance(text, str) or hashlib.sha256(text.encode()).hexdigest() != digest:
        raise _damaged(path, digest, "is not what was written")
    entries = json.loads(text)
    hidden = frozenset(entries["hidden"])
    metadata = {int(episode): entry for episode, entry in entries["metadata"].items()}
    if not all(0 <= episode < n_episodes for episode in hidden | set(metadata)):
        raise _damaged(path, digest, f"names episodes that are not among {n_episodes}")
    return Edits(hidden, metadata)


def _damaged(path: Path | str, digest: str, fault: str) -> StoreError:
    return StoreError(
        f"{path}: meta/{PREFIX}{digest[:8]}.., which says what is hidden and relabelled, {fault}: "
        f"restore it from a copy"
    )


def remove_old_edits(path: Path | str, *keep: str) -> None:
    """Delete edits that apply no more, other than those of these digests."""
    for folder in (Path(path) / "meta").glob(f"{PREFIX}*"):
        if folder.name.removeprefix(PREFIX) not in keep:
            shutil.rmtree(folder, ignore_errors=True)
