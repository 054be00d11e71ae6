"""What a format is: it writes one call of a policy as one file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram

from policy.control.program import program_of
from policy.packaged.calls import Call
from policy.packaged.manifest import PackageError


class Format(Protocol):
    """A format of packages.

    Attributes:
        name: one of `policy.packaged.manifest.FORMATS`.
        suffix: of its files, with the dot.
    """

    name: str
    suffix: str

    def check(self, device: torch.device) -> None:
        """Raise where this machine cannot write it for a device, before any work is done."""
        ...

    def versions(self) -> dict[str, str]:
        """Of the programs that write it and that load it."""
        ...

    def write(self, call: Call, file: Path) -> None:
        """Write a call.

        Raises:
            PackageError: the call cannot be written in this format.
        """
        ...


def exported(call: Call) -> ExportedProgram:
    """The operations of a call, those of gradients within it included.

    What does not depend on the inputs is computed beforehand.

    Raises:
        Exception: torch cannot trace it.
    """

    def function(*tensors: Tensor) -> list[Tensor]:
        return list(call.module(*tensors))

    with torch.no_grad():
        return torch.export.export(program_of(function, list(call.example)), call.example)


def reason(error: Exception) -> str:
    """What an exporter complains of, in one line: the innermost cause's first."""
    while error.__cause__ is not None:
        error = error.__cause__  # pyright: ignore[reportAssignmentType]
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def refusal(call: Call, name: str, error: Exception) -> PackageError:
    """That a call cannot be written in a format, and why."""
    if isinstance(error, OSError) and error.errno:
        return PackageError(
            f"the {call.name} could not be written ({error.strerror}): free some space, or choose "
            f"another place (out=)"
        )
    return PackageError(
        f"the {call.name} cannot be exported as {name} ({reason(error)}): use another sampler or "
        f"network, or another format"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters talk to their own developers; what a user needs to know comes as an error."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
