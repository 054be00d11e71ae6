"""C++ files compiled by the machine's own compiler when they are first needed.

A file has a plain C interface and knows nothing of torch: it compiles in seconds, calls take about
a microsecond, and the library outlives versions of Python and torch. It is kept in the user's cache
folder under a hash of all it depends on, and is compiled for this very processor.

OpenMP is used where there is torch's own runtime to run it: the file is compiled for it, but linked
to none, so that its threads are those of torch and never a second set beside them.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

COMPILERS = ("c++", "g++", "clang++")  # tried in this order, after $CXX
TIME_LIMIT = 300  # s; a compiler takes a few
SHOWN_LINES = 8  # of what it says


class CompileError(RuntimeError):
    """A C++ file could not be compiled or loaded; the message says why and what to do."""


def load(source: Path) -> ctypes.CDLL:
    """The library of a C++ file, compiled if it is not in the cache or is damaged there.

    Safe with several processes at once: each compiles by itself, and the last one is kept.

    Args:
        source: the file.

    Raises:
        CompileError: there is no compiler, it fails, or the cache cannot be written.
    """
    if not torch.backends.openmp.is_available():
        return _load(source, ())
    try:
        return _load(source, ("-fopenmp",))
    except CompileError as error:
        # Some compilers have no OpenMP, and that of others is not the one of torch.
        try:
            return _load(source, ())
        except CompileError:
            raise error from None


def cache_folder() -> Path:
    """Where libraries are kept: cadence/compiled in $XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "cadence" / "compiled"


def _load(source: Path, extra_flags: tuple[str, ...]) -> ctypes.CDLL:
    flags = (*_flags(), *extra_flags)
    about = [" ".join(flags), os.environ.get("CXX", ""), _machine()]
    key = _digest(*_texts(source), *(part.encode() for part in about))
    library = cache_folder() / f"{source.stem}-{key[:16]}.so"
    if not _is_intact(library):
        _compile(source, flags, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise CompileError(f"{library} was compiled but cannot be loaded: {error}") from error


def _texts(source: Path) -> list[bytes]:
    """What a file says, and what the files say that it includes by their places beside it."""
    if not source.exists():  # The compiler says so.
        return []
    text = source.read_bytes()
    names = re.findall(rb'^#include "(.+)"', text, flags=re.MULTILINE)
    return [text, *(more for name in names for more in _texts(source.parent / name.decode()))]


def _flags() -> tuple[str, ...]:
    # Apple's compiler and those for ARM know the processor as a CPU.
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    return ("-std=c++17", "-O3", native, "-fPIC", "-fno-math-errno", "-Wall")


def _machine() -> str:
    """What a library may depend on: the processor's instructions, and the C library.

    A home folder may be shared by machines, and by containers of one machine.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    kinds = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    about = [line for line in lines if line.startswith(kinds)]
    system = (platform.system(), *platform.libc_ver(), platform.machine(), platform.processor())
    return "\n".join([*system, *about])


def _compile(source: Path, flags: tuple[str, ...], library: Path) -> None:
    """Write a library and its digest; a reader finds all of it or nothing."""
    compiler = _compiler(source)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix=".") as folder:
            compiled, linked = Path(folder) / "compiled.o", Path(folder) / "linked.so"
            _run([*compiler, *flags, "-c", str(source), "-o", str(compiled)])
            # Symbols of OpenMP stay open and are found in the process.
            symbols = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
            _run([*compiler, "-shared", *symbols, str(compiled), "-o", str(linked)])
            digest = Path(folder) / "digest"
            digest.write_text(_digest(linked.read_bytes()))
            os.replace(linked, library)
            os.replace(digest, _digest_file(library))
    except OSError as error:
        raise CompileError(
            f"{library} could not be written: {error.strerror}; "
            f"set XDG_CACHE_HOME to a folder that can be"
        ) from error


def _compiler(source: Path) -> list[str]:
    """The command of a compiler."""
    named = os.environ.get("CXX", "").split()
    for command in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    tried = named[0] if named else ", ".join(COMPILERS)
    raise CompileError(
        f"{source.name} needs a C++ compiler and there is none: {tried} not found on PATH; "
        f"install g++ (or clang), or set CXX to one"
    )


def _run(command: list[str]) -> None:
    """Run a compiler."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        raise CompileError(f"{' '.join(command)} took over {TIME_LIMIT} s") from None
    except OSError as error:
        raise CompileError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[:SHOWN_LINES]
        raise CompileError("\n".join([f"this command failed: {' '.join(command)}", *said]))


def _is_intact(library: Path) -> bool:
    """Whether a library is as it was written; loading a damaged one could end the process."""
    try:
        return _digest(library.read_bytes()) == _digest_file(library).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
