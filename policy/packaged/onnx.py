"""ONNX: a call as operators that onnxruntime and other programs carry out, on any machine."""

import importlib.metadata
from pathlib import Path

import torch

from policy.packaged.calls import Call
from policy.packaged.formats import exported, quiet, reason, refusal
from policy.packaged.manifest import PackageError

NEEDED = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 1.9e9  # bytes of weights; a file with its weights within ends at 2 GiB


class ONNX:
    """Writes packages for onnxruntime.

    Args:
        opset: version of the operators; None: that of torch's exporter.
    """

    name, suffix = "onnx", ".onnx"

    def __init__(self, *, opset: int | None = None):
        self.opset = opset

    def check(self, device: torch.device) -> None:
        """Raise ImportError where a program is not installed, PackageError for other devices."""
        try:
            self.versions()
        except importlib.metadata.PackageNotFoundError as error:
            raise ImportError(
                f"format=onnx needs {', '.join(NEEDED)}, {error.name} is not installed: "
                f'pip install "cadence[onnx]"'
            ) from error
        if device.type != "cpu":
            raise PackageError(f"format=onnx is written on the CPU, device is {device}: device=cpu")

    def versions(self) -> dict[str, str]:
        """Of the programs that write and check it."""
        return {name: importlib.metadata.version(name) for name in NEEDED}

    def write(self, call: Call, file: Path) -> None:
        """Write a call.

        Raises:
            PackageError: it cannot be traced, has operators that ONNX lacks, or is too large.
        """
        weights = {id(t): t.nbytes for t in (*call.module.parameters(), *call.module.buffers())}
        if sum(weights.values()) > LARGEST:
            raise PackageError(
                f"the policy has {sum(weights.values()) / 1e9:.1f} GB of weights, an ONNX file "
                f"holds {LARGEST / 1e9:g}: use format=aot"
            )
        try:
            with quiet():
                program = torch.onnx.export(
                    exported(call),
                    dynamo=True,
                    verbose=False,
                    optimize=True,
                    opset_version=self.opset,
                    input_names=[spec.name for spec in call.inputs],
                    output_names=[spec.name for spec in call.outputs],
                )
                assert program is not None
                program.save(file, external_data=False)
        except Exception as error:  # Exporters of torch raise whatever they like.
            if "_backward" in reason(error):
                raise PackageError(
                    f"the {call.name} follows a gradient through the network (guidance), for which "
                    f"ONNX lacks an operator: use format=aot, sampler.guidance.blend=true, or "
                    f"another sampler"
                ) from error
            raise refusal(call, self.name, error) from error
