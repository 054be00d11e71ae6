"""An exported policy as an agent: one stream of control, whose chunks are drawn by a package.

It needs torch (and onnxruntime, for ONNX), and none of what trained or sampled: no networks, no
noise maths, no store, no simulator. A stream's noise is that of `policy.agent.Agent` with one row,
bit for bit.

    planner = load_package("exported")            # a planner as of policy.planning.AgentPlanner
    chunk = planner(Request(history, tick=0))

Shape legend: `To Tp` observed and predicted steps, `Da` action size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.types import Contract
from policy.packaged.graphs import Graph, open_graphs
from policy.packaged.manifest import (
    Manifest,
    PackageError,
    read_manifest,
    start_name,
    tick_name,
)
from policy.planning import AgentPlanner
from policy.sampling.carry import UNKNOWN, moved
from policy.streams import NotFiniteError, Streams, element_told
from policy.types import Carry


def load_package(path: Path | str, *, threads: int | None = None) -> AgentPlanner:
    """The planner of an exported policy.

    Args:
        path: of the package, or of its JSON.
        threads: of onnxruntime; None: as of the export. AOTInductor's code has those of the export.

    Raises:
        PackageError: there is no package, it is damaged, it cannot run on this machine or with its
            programs, or it holds a denoiser and no sampler.
        ImportError: a program is not installed.
    """
    manifest, folder = read_manifest(path)
    if manifest.what != "tick":
        raise PackageError(
            f"{folder} holds a denoiser, which plans nothing without a sampler: export with "
            f"what=tick"
        )
    needed = [tick_name(delay) for delay in range(manifest.max_delay + 1)]
    missing = [name for name in needed if name not in manifest.graphs]
    if missing:
        raise PackageError(f"{folder} lacks the graphs {missing}: export again")
    graphs = open_graphs(manifest, folder, threads=threads)
    agents = [PackagedAgent(manifest, graphs, inference_delay=d) for d in range(len(needed))]
    return AgentPlanner(agents)


class PackagedAgent:
    """Chunks of actions in physical units from observations in physical units, for one stream.

    Args:
        manifest: of the package.
        graphs: of the package, by name.
        inference_delay: decided actions that its chunks begin with.
    """

    def __init__(
        self, manifest: Manifest, graphs: Mapping[str, Graph], *, inference_delay: int = 0
    ):
        name, start = tick_name(inference_delay), start_name(inference_delay)
        self.manifest, self.horizons = manifest, manifest.horizons
        self.inference_delay = inference_delay
        self.device = torch.device(manifest.device)
        self.weights = str(manifest.checkpoint.get("weights", ""))
        self._tick, self._noise = graphs[name], manifest.graphs[name].noise
        self._start = graphs.get(start)
        self._start_noise = manifest.graphs[start].noise if start in graphs else ()
        self._carry_shape = next(i.shape for i in manifest.graphs[name].inputs if i.name == "x")

    @property
    def contract(self) -> Contract:
        """Meaning of the observations and actions."""
        return self.manifest.contract

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        return self.manifest.nfe

    @property
    def calls(self) -> str:
        """The denoiser calls of a chunk, and of a stream's start where it costs some."""
        start = self.manifest.start_nfe
        more = f" ({start} more at the start)" if start else ""
        return f"{self.nfe} calls per {self.horizons.action} actions{more}"

    def start(self, seeds: Sequence[int]) -> Streams:
        """A new stream.

        Args:
            seeds: its seed alone.

        Raises:
            ValueError: there are several: a package is made for one stream.
        """
        if len(seeds) != 1:
            raise ValueError(f"{len(seeds)} streams are asked for, a package has one: give 1 seed")
        generator = torch.Generator(self.device).manual_seed(seeds[0])
        return Streams(list(seeds), [generator], [0], {0})

    def renew(self, streams: Streams, slot: int) -> None:
        """Forget what the stream has planned: its next chunk is as one of a new stream."""
        streams.fresh.add(slot)

    def shift(self, streams: Streams, n_executed: int) -> None:
        """Time moved on by `n_executed` actions.

        Raises:
            ValueError: a chunk has not so many actions.
        """
        if not 0 <= n_executed <= self.horizons.pred:
            raise ValueError(
                f"{n_executed} actions were executed, a chunk has {self.horizons.pred}: give 0 to "
                f"{self.horizons.pred}, and renew() streams that stalled for longer"
            )
        if streams.carry is not None and self.manifest.shift == "move":
            streams.carry = moved(streams.carry, n_executed)
        streams.ticks = [tick + n_executed for tick in streams.ticks]

    @torch.no_grad()
    def chunk(self, streams: Streams, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The next chunk of the stream.

        Args:
            streams: of `start`.
            observation: field name -> [1, To, ...].

        Returns:
            Actions [1, Tp - past, *action], the first one for now.

        Raises:
            NotFiniteError: the denoiser predicted something that is not a number.
            KeyError: a field is missing.
            ValueError: a field has another shape or kind, or the stream is told no task.
        """
        seen = [self._field(name, observation) for name in self.contract.observation]
        self._renew_if_told_otherwise(streams, observation)
        earlier = self._start_if_fresh(streams, seen)
        assert streams.carry is not None
        noise = _drawn(self._noise, streams)
        actions, x, sigma, fault = self._tick([*seen, streams.carry.x, streams.carry.sigma, *noise])
        streams.carry = Carry(x, sigma)
        made = actions.cpu().numpy().astype(self.contract.action.dtype)
        self._check_finite(streams, made, earlier or float(fault[0]))
        return made

    def _field(self, name: str, observation: Mapping[str, np.ndarray]) -> Tensor:
        """A field as the graphs take it."""
        field = self.contract.observation[name]
        if name not in observation:
            raise KeyError(
                f"the observation lacks {name!r}: the policy needs "
                f"{sorted(self.contract.observation)}, given are {sorted(observation)}"
            )
        values = np.asarray(observation[name])
        wanted = (1, self.horizons.obs, *field.shape)
        if values.shape != wanted:
            raise ValueError(
                f"observation {name!r} has shape {values.shape}, the package needs {wanted}: one "
                f"stream, {self.horizons.obs} steps (obs horizon), the newest last"
            )
        if field.is_image and values.dtype != np.uint8:
            raise ValueError(
                f"the picture {name!r} is {values.dtype}, the contract says uint8, 0..255"
            )
        return torch.from_numpy(np.array(values, dtype=field.dtype, order="C")).to(self.device)

    def _renew_if_told_otherwise(
        self, streams: Streams, observation: Mapping[str, np.ndarray]
    ) -> None:
        """Renew the stream if its scale is another now: what it has planned is in the old one."""
        name = self.contract.scaled_per
        if not name:
            return
        element = element_told(np.asarray(observation[name])[0, -1], name=name, slot=0)
        if streams.told.get(0, element) != element:
            self.renew(streams, 0)
        streams.told[0] = element

    def _start_if_fresh(self, streams: Streams, seen: Sequence[Tensor]) -> float:
        """Begin a fresh stream; the level at which a prediction was not finite, or 0."""
        if 0 not in streams.fresh:
            return 0.0
        first = 0.0
        if self._start is None:
            x = torch.zeros(self._carry_shape, device=self.device)
            sigma = x.new_full(x.shape[:2], UNKNOWN)
        else:
            x, sigma, fault = self._start([*seen, *_drawn(self._start_noise, streams)])
            first = float(fault[0])
        streams.carry = Carry(x, sigma)
        streams.fresh -= {0}  # Last: a start that fails leaves nothing old to go on with.
        return first

    def _check_finite(self, streams: Streams, actions: np.ndarray, fault: float) -> None:
        """Raise NotFiniteError where the actions, or what led to them, are no numbers."""
        if fault > 0 or not np.isfinite(actions).all():
            where = f"first at sigma {fault:g}" if fault > 0 else "in the sampler"
            raise NotFiniteError(
                f"a prediction is not finite in the stream of seed {streams.seeds[0]} at tick "
                f"{streams.ticks[0]}, {where}: check the observation and the checkpoint"
            )


def _drawn(shapes: Sequence[tuple[int, ...]], streams: Streams) -> list[Tensor]:
    """Noise of the given shapes [1, ...], drawn in order by the stream's own generator."""
    generator = streams.generators[0]
    return [
        torch.randn(shape[1:], generator=generator, device=generator.device)[None]
        for shape in shapes
    ]
