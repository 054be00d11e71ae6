"""Graphs of a package as functions from tensors to tensors.

AOTInductor's are native code: who loads a package runs it, so load your own only. ONNX holds
operators, which onnxruntime carries out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from policy.packaged.machine import lacking
from policy.packaged.manifest import Manifest, PackageError, check_file

# Inputs in the order of `GraphFile.inputs` -> outputs in that of `GraphFile.outputs`.
Graph = Callable[[Sequence[Tensor]], list[Tensor]]


def open_graphs(
    manifest: Manifest, folder: Path, *, threads: int | None = None
) -> dict[str, Graph]:
    """The graphs of a package by name.

    Args:
        manifest: of the package.
        folder: of the package.
        threads: of onnxruntime; None: as of the export. AOTInductor's code has those of the export.

    Raises:
        PackageError: a file is damaged, or cannot run on this machine or with its programs.
        ImportError: a program is not installed.
    """
    if manifest.format == "aot":
        _check_machine(manifest, folder)
    opened = {}
    for name, graph in manifest.graphs.items():
        file = check_file(folder, graph)
        try:
            if manifest.format == "aot":
                opened[name] = _aot(file)
            else:
                names = [spec.name for spec in graph.inputs]
                opened[name] = _onnx(file, names, threads or manifest.threads)
        except RuntimeError as error:
            raise PackageError(
                f"{file} cannot be loaded ({_first_line(error)}): export again with the programs "
                f"of this machine"
            ) from error
    return opened


def _check_machine(manifest: Manifest, folder: Path) -> None:
    """Refuse native code that could end this process instead of failing."""
    again = "export again here, with cadence export format=aot (or format=onnx, which fits any)"
    reason = lacking(manifest.processor)
    if reason:
        raise PackageError(f"{folder} cannot run on this machine: {reason}; {again}")
    made_with, here = manifest.versions.get("torch", "unknown"), torch.__version__
    if made_with.split("+")[0] != here.split("+")[0]:
        raise PackageError(
            f"{folder} was made with torch {made_with}, this is torch {here}; {again}"
        )
    if manifest.device == "cuda" and not torch.cuda.is_available():
        raise PackageError(f"{folder} was made for cuda, which is not there; {again}")


def _aot(file: Path) -> Graph:
    run = torch._inductor.aoti_load_package(str(file))
    return lambda tensors: list(run(*tensors))


def _onnx(file: Path, names: Sequence[str], threads: int) -> Graph:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            'ONNX packages need onnxruntime: pip install "cadence[onnx]" (or onnxruntime)'
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        given = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
        return [torch.from_numpy(values) for values in session.run(None, given)]

    return run


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
