"""AOTInductor: a call compiled to native code, which torch runs without Python's part in it.

The code is for this processor, and its loops have as many threads as torch had here. Weights are
within the files.
"""

import os
import platform
import shutil
from pathlib import Path

import torch

from policy.packaged.calls import Call
from policy.packaged.formats import exported, quiet, refusal
from policy.packaged.manifest import PackageError


class AOT:
    """Writes packages that torch alone runs, on a machine like this one.

    Args:
        freezing: whether weights are constants that are laid out for the processor beforehand.
    """

    name, suffix = "aot", ".pt2"

    def __init__(self, *, freezing: bool = True):
        self.freezing = freezing

    def check(self, device: torch.device) -> None:
        """Raise PackageError where there is no compiler."""
        usual = "clang++" if platform.system() == "Darwin" else "g++"
        compiler = (os.environ.get("CXX", "").split() or [usual])[0]
        if shutil.which(compiler) is None:
            raise PackageError(
                f"format=aot compiles C++ and {compiler} is not found on PATH: install {usual}, "
                f"set CXX to a compiler, or use format=onnx"
            )

    def versions(self) -> dict[str, str]:
        """Of the programs that write it: torch, which is named for all formats."""
        return {}

    def write(self, call: Call, file: Path) -> None:
        """Compile a call.

        Raises:
            PackageError: it cannot be traced or compiled.
        """
        try:
            with quiet():
                # On a GPU, kernels are frozen by themselves.
                freezing = self.freezing and call.example[0].device.type == "cpu"
                torch._inductor.aoti_compile_and_package(
                    exported(call), package_path=str(file), inductor_configs={"freezing": freezing}
                )
        except Exception as error:  # Compilers of torch raise whatever they like.
            raise refusal(call, self.name, error) from error
