"""Making a package: calls become files, which are loaded again, compared and timed.

The package appears under its name once all of that is done.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from policy.agent import Agent
from policy.model import DiffusionPolicy
from policy.packaged.agent import PackagedAgent
from policy.packaged.calls import Call, part_calls, shift_of, tick_calls
from policy.packaged.formats import Format
from policy.packaged.graphs import Graph, open_graphs
from policy.packaged.machine import processor
from policy.packaged.manifest import (
    MANIFEST,
    GraphFile,
    Manifest,
    PackageError,
    fingerprint,
    text_of,
)
from policy.packaged.parity import Parity, call_parity, history_of, latency, one_chunk, tick_parity


@dataclass(frozen=True)
class Source:
    """Where a policy is from, for the package to tell.

    Args:
        checkpoint: path, step, weights, sha256 and store_digest.
        sampler: resolved configuration; {} for what=denoiser.
        versions: of the programs.
    """

    checkpoint: Mapping[str, object]
    sampler: Mapping[str, object]
    versions: Mapping[str, str]


def export_ticks(
    agents: Sequence[Agent],
    format: Format,
    out: Path,
    source: Source,
    *,
    tolerance: float,
    n_timed: int,
    progress: Callable[[str], object] = print,
) -> Manifest:
    """Export a policy with a sampler: chunks from observations.

    Args:
        agents: of one policy, with one row; `agents[d]` is for d decided actions.
        format: to write.
        out: folder to write, which must not exist.
        source: of the policy.
        tolerance: of the differences from the agents' chunks, in the action's scale.
        n_timed: chunks whose latency is measured, of each.
        progress: told what is being done.

    Raises:
        PackageError: the policy or its sampler cannot be exported in this format.
        ValueError: `out` is there, or the package's chunks differ by more than the tolerance.
        ImportError: a program is not installed.
    """
    agent = agents[0]
    _check(agent.policy, format, out, agent.device)
    draft = tick_draft(agents, format, source)

    def judge(manifest: Manifest, folder: Path) -> tuple[Parity, list[dict[str, float]]]:
        graphs = open_graphs(manifest, folder)
        packaged = [PackagedAgent(manifest, graphs, inference_delay=d) for d in range(len(agents))]
        parity = tick_parity(agent.policy, list(zip(agents, packaged, strict=True)))
        parity.check(tolerance)
        seen = history_of(agent.policy, np.random.default_rng(0))
        return parity, latency([one_chunk(a, seen) for a in (agent, packaged[0])], n=n_timed)

    return _make(draft, tick_calls(agents), format, out, judge, tolerance, n_timed, progress)


def tick_draft(agents: Sequence[Agent], format: Format, source: Source) -> Manifest:
    """What is known of a package of ticks before its files are; for the arguments see above.

    Raises:
        PackageError: the sampler moves its carry in a way of its own.
    """
    agent = agents[0]
    draft = _draft(agent.policy, format, source, agent.device)
    return replace(
        draft,
        what="tick",
        contract=replace(draft.contract, horizons=agent.horizons),
        sampler=dict(source.sampler),
        goal_weight=agent.goal_weight,
        nfe=agent.nfe,
        start_nfe=agent.sampler.start_nfe,
        shift=shift_of(agent),
        max_delay=len(agents) - 1,
    )


def export_parts(
    policy: DiffusionPolicy,
    format: Format,
    out: Path,
    source: Source,
    *,
    tolerance: float,
    n_timed: int,
    progress: Callable[[str], object] = print,
) -> Manifest:
    """Export encoder, one denoiser call and un-normalisation.

    Args:
        policy: frozen, in evaluation mode, on its device.
        format: to write.
        out: folder to write, which must not exist.
        source: of the policy.
        tolerance: of the differences from the policy's results, in the action's scale.
        n_timed: denoiser calls whose latency is measured, of each.
        progress: told what is being done.

    Raises:
        PackageError: the policy cannot be exported in this format.
        ValueError: `out` is there, or the results differ by more than the tolerance.
        ImportError: a program is not installed.
    """
    device = next(policy.parameters()).device
    _check(policy, format, out, device)
    calls = part_calls(policy)

    def judge(manifest: Manifest, folder: Path) -> tuple[Parity, list[dict[str, float]]]:
        graphs = open_graphs(manifest, folder)
        parity = call_parity(policy, [(call, graphs[call.name]) for call in calls])
        parity.check(tolerance)
        call = next(call for call in calls if call.name == "denoiser")
        return parity, latency(_single(call, graphs[call.name]), n=n_timed)

    draft = _draft(policy, format, source, device)
    return _make(draft, calls, format, out, judge, tolerance, n_timed, progress)


def describe(manifest: Manifest, out: Path) -> str:
    """What was made, in words."""
    parity, measured = manifest.parity, manifest.latency
    size = sum(graph.size for graph in manifest.graphs.values())
    times = [
        f"{name} {' / '.join(f'{1e3 * measured[name][q]:.2f}' for q in ('p50', 'p95', 'p99'))} ms"
        for name in ("eager", "package")
    ]
    unit = "chunk" if manifest.what == "tick" else "denoiser call"
    return "\n".join(
        [
            f"parity: largest error {parity['max_error']:.2g} of the action's scale in "
            f"{parity['compared']} (tolerance {parity['tolerance']:g})",
            f"latency of a {unit}, p50 / p95 / p99: {', '.join(times)} "
            f"({manifest.device}, float32, threads {manifest.threads}, {measured['n']} each, in "
            f"turns)",
            f"exported: {', '.join(graph.file for graph in manifest.graphs.values())}, "
            f"{size / 1e6:.1f} MB, to {out}",
            *([f"serve it: cadence serve checkpoint={out}"] if manifest.what == "tick" else []),
        ]
    )


Judge = Callable[[Manifest, Path], tuple[Parity, list[dict[str, float]]]]


def _make(
    draft: Manifest,
    calls: Sequence[Call],
    format: Format,
    out: Path,
    judge: Judge,
    tolerance: float,
    n_timed: int,
    progress: Callable[[str], object],
) -> Manifest:
    """Write all files beside their place, judge them, and give them their name."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackageError(
            f"out={out} cannot be made there ({error.strerror}): choose another place"
        ) from error
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
        folder = Path(beside) / "package"
        folder.mkdir()
        graphs = {}
        for i, call in enumerate(calls, 1):
            progress(f"{format.name}: {call.name} ({i} of {len(calls)}) ...")
            file = folder / f"{call.name}{format.suffix}"
            format.write(call, file)
            graphs[call.name] = GraphFile(file.name, *fingerprint(file), call.inputs, call.outputs)
        progress("comparing with the checkpoint ...")
        written = replace(draft, graphs=graphs)
        parity, (eager, package) = judge(written, folder)
        compared = {"max_error": parity.max_error, "compared": parity.described}
        measured = {"eager": eager, "package": package, "n": n_timed}
        written = replace(written, parity={**compared, "tolerance": tolerance}, latency=measured)
        (folder / MANIFEST).write_text(text_of(written))
        os.rename(folder, out)
    return written


def _check(policy: DiffusionPolicy, format: Format, out: Path, device: torch.device) -> None:
    """Refuse what cannot come to a good end before anything takes time."""
    if os.path.lexists(out):  # a link to nothing, too
        raise PackageError(f"out={out} exists: choose another place, or remove it")
    others = {str(p.dtype) for p in policy.parameters() if p.dtype != torch.float32}
    if others:
        raise PackageError(
            f"the policy has weights of {', '.join(sorted(others))}, a package is made of float32"
        )
    format.check(device)


def _draft(
    policy: DiffusionPolicy, format: Format, source: Source, device: torch.device
) -> Manifest:
    """What is known of a package before its files are."""
    return Manifest(
        format=format.name,
        what="denoiser",
        contract=replace(
            policy.contract, horizons=policy.horizons, statistics=policy.normalizer.digest()
        ),
        sampler={},
        goal_weight=1.0,
        nfe=1,
        start_nfe=0,
        shift="keep",
        max_delay=0,
        graphs={},
        device=device.type,
        threads=torch.get_num_threads(),
        processor=processor(device.type),
        versions={"torch": torch.__version__, **source.versions, **format.versions()},
        checkpoint=dict(source.checkpoint),
        parity={},
        latency={},
    )


def _single(call: Call, graph: Graph) -> list[Callable[[], object]]:
    """The eager call and that of the package."""

    def eager() -> None:
        with torch.no_grad():
            call.module(*call.example)[0].cpu()

    return [eager, lambda: graph(call.example)[0].cpu()]
