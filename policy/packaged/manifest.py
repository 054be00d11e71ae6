"""What an exported policy is made of: a readable JSON beside its graphs.

    <package>/package.json      contract, sampler, inputs and outputs, versions, parity, ...
              tick.pt2          (or .onnx) a chunk from an observation, the carry and noise
              start.pt2         of samplers that begin a stream by a chunk: its carry
              tick_delay_1.pt2  the same for chunks that begin with decided actions
              encoder.pt2       of what=denoiser: observation to condition, ...
              denoiser.pt2      ... one denoiser call, ...
              decoder.pt2       ... and actions in physical units

Each graph takes and gives a list of tensors, which are described in order. SHA-256 of all files,
and of the JSON itself, are checked before anything is used.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.types import Contract, Horizons

FORMAT_VERSION = 1
MANIFEST = "package.json"
FORMATS = ("aot", "onnx")
CONTENTS = ("tick", "denoiser")
SHIFTS = ("move", "keep")
OBSERVATION, NOISE = "observation.", "noise."  # how names of such inputs begin


class PackageError(ValueError):
    """A package cannot be made or used; the message says why and what to do."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    Args:
        name: "observation.FIELD", "x", "sigma", "noise.N", "actions", "x_next", "fault", ...
        shape: of the tensor; the first entry counts streams, which is 1.
        dtype: numpy name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class GraphFile:
    """A graph and its file.

    Args:
        file: name in the package's folder.
        size: of the file [bytes].
        sha256: of the file.
        inputs: in the order in which they are given.
        outputs: in the order in which they come.
    """

    file: str
    size: int
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def noise(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each noise that the graph takes, in the order of their drawing."""
        return tuple(spec.shape for spec in self.inputs if spec.name.startswith(NOISE))


@dataclass(frozen=True)
class Manifest:
    """What a package is.

    Args:
        format: one of `FORMATS`.
        what: one of `CONTENTS`.
        contract: of the policy, with horizons and digest of the statistics.
        sampler: its resolved configuration.
        goal_weight: of the goal, where the policy has one.
        nfe: denoiser calls per chunk.
        start_nfe: denoiser calls of a stream's start.
        shift: whether a carry is to "move" on with time, or to "keep" its place.
        max_delay: most decided actions that a chunk can begin with.
        graphs: name -> graph; see `tick_name` and `start_name`.
        device: that the graphs run on, "cpu" or "cuda".
        threads: of the network on the CPU.
        processor: that code was compiled for; see `policy.packaged.machine`.
        versions: of the programs that wrote it.
        checkpoint: where the weights are from: path, step, weights, sha256, store_digest.
        parity: how far chunks are from those of the checkpoint.
        latency: of the checkpoint and of the package on the machine of the export [s].
    """

    format: str
    what: str
    contract: Contract
    sampler: dict
    goal_weight: float
    nfe: int
    start_nfe: int
    shift: str
    max_delay: int
    graphs: Mapping[str, GraphFile]
    device: str
    threads: int
    processor: dict
    versions: dict[str, str]
    checkpoint: dict
    parity: dict
    latency: dict

    @property
    def horizons(self) -> Horizons:
        """Steps seen, predicted and executed."""
        assert self.contract.horizons is not None
        return self.contract.horizons

    def to_json(self) -> dict:
        """JSON form, read back by `from_json`."""
        entry = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        graphs = {name: dataclasses.asdict(graph) for name, graph in self.graphs.items()}
        entry |= {"contract": self.contract.to_json(), "graphs": graphs}
        return {"format_version": FORMAT_VERSION, **entry}

    @classmethod
    def from_json(cls, entry: Mapping) -> "Manifest":
        """A manifest from its JSON form.

        Raises:
            KeyError: an entry is missing.
            TypeError: an entry is of another kind.
            ValueError: an entry is wrong.
        """
        values = {f.name: entry[f.name] for f in dataclasses.fields(cls)}
        graphs = {str(name): _graph(graph) for name, graph in entry["graphs"].items()}
        values |= {"contract": Contract.from_json(entry["contract"]), "graphs": graphs}
        manifest = cls(**values)
        if manifest.contract.horizons is None:
            raise ValueError("its contract has no horizons")
        for name, value, choices in (
            ("format", manifest.format, FORMATS),
            ("what", manifest.what, CONTENTS),
            ("shift", manifest.shift, SHIFTS),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, known are {', '.join(choices)}")
        return manifest


def tick_name(delay: int) -> str:
    """Name of the graph of chunks that begin with so many decided actions."""
    return f"tick_delay_{delay}" if delay else "tick"


def start_name(delay: int) -> str:
    """Name of the graph that begins a stream; packages may lack it."""
    return f"start_delay_{delay}" if delay else "start"


def is_package(path: Path | str) -> bool:
    """Whether a path is a package, or the JSON of one."""
    path = Path(str(path))
    return (path / MANIFEST).is_file() or (path.name == MANIFEST and path.is_file())


def text_of(manifest: Manifest) -> str:
    """The content of a package's JSON, its own digest at the end."""
    entry = manifest.to_json()
    return json.dumps({**entry, "digest": _digest(entry)}, indent=1) + "\n"


def read_manifest(path: Path | str) -> tuple[Manifest, Path]:
    """What a package is, and its folder; its graphs are not looked at.

    Args:
        path: of the folder, or of its JSON.

    Raises:
        PackageError: there is none, or its JSON is damaged, edited, or of a newer program.
    """
    path = Path(str(path))
    folder = path.parent if path.is_file() else path
    file = folder / MANIFEST
    if not file.is_file():
        raise PackageError(f"there is no {MANIFEST} in {folder}: give what cadence export wrote")
    try:
        entry = json.loads(file.read_bytes())
        version = entry["format_version"]
        is_newer = int(version) > FORMAT_VERSION
    except (ValueError, TypeError, KeyError) as error:
        raise PackageError(f"{file} is damaged ({error}): export again") from error
    if is_newer:
        raise PackageError(
            f"{folder} has format version {version}, this program reads up to {FORMAT_VERSION}: "
            f"upgrade cadence"
        )
    digest = entry.pop("digest", None)
    if digest != _digest(entry):
        raise PackageError(
            f"{file} is not as it was written, its digest differs: export again (what it says of "
            f"a policy is never edited)"
        )
    try:
        return Manifest.from_json(entry), folder
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(
            f"{file} has a wrong or missing entry ({error}): export again"
        ) from error


def check_file(folder: Path, graph: GraphFile) -> Path:
    """The path of a graph's file, which is as it was written.

    Raises:
        PackageError: it is missing or damaged.
    """
    file = folder / graph.file
    if Path(graph.file).name != graph.file or not file.is_file():
        raise PackageError(f"{file} is missing: copy the whole folder, or export again")
    size, sha256 = fingerprint(file)
    for entry, found, written in (("size", size, graph.size), ("sha256", sha256, graph.sha256)):
        if found != written:
            raise PackageError(
                f"{file} is damaged: its {entry} is {found}, written was {written}; copy it "
                f"again, or export again"
            )
    return file


def fingerprint(file: Path) -> tuple[int, str]:
    """Size [bytes] and SHA-256 of a file."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return file.stat().st_size, digest


def _graph(entry: Mapping) -> GraphFile:
    values = dict(entry)
    for side in ("inputs", "outputs"):
        values[side] = tuple(
            TensorSpec(str(spec["name"]), tuple(map(int, spec["shape"])), str(spec["dtype"]))
            for spec in entry[side]
        )
    return GraphFile(**values)


def _digest(entry: Mapping) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
