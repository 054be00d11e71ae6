"""Programs by torch's compilers: as code of this process, or a package that later starts load."""

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from policy.control.engine import Call, UnavailableError
from policy.control.program import Program
from policy.fingerprint import device_name

KEPT = 8  # packages, each as large as its network


def compiled(program: Program, inputs: Sequence[Tensor]) -> Call:
    """A program by torch.compile.

    Args:
        program: to be compiled.
        inputs: an example, on the program's device.

    Raises:
        UnavailableError: the compiler cannot.
    """

    @torch.no_grad()  # As it is called: otherwise it would be compiled again.
    def make() -> Call:
        call = torch.compile(program, fullgraph=True, dynamic=False)
        call(*inputs)
        return call

    return _built("torch.compile", make)


def packaged(program: Program, inputs: Sequence[Tensor], folder: Path) -> Call:
    """A program by AOTInductor, its weights frozen into a package.

    Args:
        program: to be compiled.
        inputs: an example, on the program's device.
        folder: of the packages, which later starts take up; the last few are kept.

    Raises:
        UnavailableError: the compiler cannot, or the folder cannot be written to.
    """
    # A package is made for one kind of processor, and ends the process on another.
    device = device_name(inputs[0].device)
    about = f"{digest(program, inputs)} {device} {torch.get_num_threads()} {torch.__version__}"
    path = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.pt2"

    @torch.no_grad()
    def make() -> Call:
        if path.exists():
            with contextlib.suppress(OSError):  # A folder that can only be read will do.
                os.utime(path)  # It is in use.
            # Where it is damaged, it is made again.
            with contextlib.suppress(Exception):
                return torch._inductor.aoti_load_package(str(path))
        _write(program, inputs, path)
        _forget(folder)
        return torch._inductor.aoti_load_package(str(path))

    return _built("AOTInductor", make)


def digest(program: Program, inputs: Sequence[Tensor]) -> str:
    """SHA-256 of a program's operations, its constants, and what its inputs are like.

    Args:
        program: whose operations may be the same for inputs of other shapes.
        inputs: an example.
    """
    found = hashlib.sha256(program.body.code.encode())
    for given in inputs:
        found.update(f"{given.dtype} {tuple(given.shape)}".encode())
    for constant in program.constants:
        values = constant.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(f"{constant.dtype} {tuple(constant.shape)}".encode())
        found.update(values.numpy().data)
    return found.hexdigest()


def _forget(folder: Path) -> None:
    """Remove the packages that were not used for longest, but for the last ones."""
    with contextlib.suppress(OSError):  # Another process may do the same.
        packages = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime)
        for path in packages[:-KEPT]:
            path.unlink(missing_ok=True)


def _built(what: str, make: Callable[[], Call]) -> Call:
    """What `make` gives.

    Raises:
        UnavailableError: it raises; compilers raise whatever they like.
    """
    try:
        return make()
    except UnavailableError:
        raise
    except Exception as error:
        system = _of_system(error)
        if system is not None:
            raise UnavailableError(
                f"{what} could not write what it makes ({system.strerror}): free some space, or "
                f"set XDG_CACHE_HOME and TMPDIR to folders that have it"
            ) from error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnavailableError(
            f"{what} failed ({reason[:200]}): it needs a C++ compiler (g++ or clang), or Triton on "
            f"CUDA; engine=eager does without"
        ) from error


def _of_system(error: BaseException | None) -> OSError | None:
    """The full disk, or the like, that an error comes from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return error
        error = error.__cause__ or error.__context__
    return None


def _write(program: Program, inputs: Sequence[Tensor], path: Path) -> None:
    """Compile a program into a package; a reader finds all of it or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError as error:
        raise UnavailableError(
            f"its package could not be written to {path.parent} ({error.strerror}): set "
            f"XDG_CACHE_HOME to a folder that can be"
        ) from error
    with place as folder:
        exported = torch.export.export(program, tuple(inputs))
        made = torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(Path(folder) / path.name),
            inductor_configs={"freezing": True},
        )
        os.replace(made, path)
