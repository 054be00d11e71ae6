"""C++ files compiled when needed: the cache, damage, several processes, and compilers that fail."""

import ctypes
import os
import platform
import shutil
import stat
import subprocess
import sys

import pytest

from policy.nets import compiled
from policy.nets.compiled import CompileError, cache_folder, load

DOUBLED = 'extern "C" double doubled(double x) { return FACTOR * x; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "doubled.cpp"
    file.write_text(DOUBLED.replace("FACTOR", "2"))
    return file


def doubled(library, x):
    library.doubled.argtypes, library.doubled.restype = [ctypes.c_double], ctypes.c_double
    return library.doubled(x)


def kept():
    return sorted(path.name for path in cache_folder().iterdir())


def without_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)


def test_it_is_compiled_once_and_then_needs_no_compiler(source, monkeypatch):
    assert doubled(load(source), 3.0) == 6.0
    assert len(kept()) == 2  # the library and its digest
    without_compiler(monkeypatch)
    assert doubled(load(source), 4.0) == 8.0


def test_another_source_is_another_library(source):
    load(source)
    source.write_text(DOUBLED.replace("FACTOR", "3"))
    assert doubled(load(source), 3.0) == 9.0
    assert len(kept()) == 4


def test_another_text_of_an_included_file_is_another_library(source):
    folder = source.parent / "parts"
    folder.mkdir()
    source.write_text('#include "parts/outer.h"\n' + DOUBLED)
    (folder / "outer.h").write_text('#include "inner.h"\n')
    for factor in (2, 3):
        (folder / "inner.h").write_text(f"#define FACTOR {factor}\n")
        assert doubled(load(source), 3.0) == 3.0 * factor
    assert len(kept()) == 4
    (folder / "inner.h").unlink()
    with pytest.raises(CompileError, match=r"inner\.h"):
        load(source)


def test_another_processor_or_system_is_another_library(source, monkeypatch):
    load(source)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "another"))
    load(source)
    assert len(kept()) == 4
    monkeypatch.setattr(platform, "processor", lambda: "another")
    load(source)
    assert len(kept()) == 6


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "no digest", "broken digest"])
def test_damaged_library_is_made_again(source, damage):
    load(source)
    (library,) = cache_folder().glob("*.so")
    (digest,) = cache_folder().glob("*.sha256")
    whole = library.read_bytes()
    # A new file in its place: the one that is loaded must stay as it is.
    library.unlink()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    library.write_bytes(
        {"cut": whole[:-100], "changed": bytes(changed), "emptied": b""}.get(damage, whole)
    )
    if damage == "no digest":
        digest.unlink()
    if damage == "broken digest":
        digest.write_bytes(b"\xff\xfe")
    assert doubled(load(source), 3.0) == 6.0
    assert library.read_bytes() == whole


def test_no_compiler_is_told_with_what_to_install(source, monkeypatch):
    without_compiler(monkeypatch)
    with pytest.raises(CompileError, match=r"doubled.cpp needs a C\+\+ compiler .* install g\+\+"):
        load(source)


def test_compiler_that_is_named_and_missing_is_told(source, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(CompileError, match="no-such-compiler not found"):
        load(source)


def test_compiler_may_be_named_with_flags(source, monkeypatch):
    compiler = next(filter(shutil.which, compiled.COMPILERS))
    source.write_text(DOUBLED)
    monkeypatch.setenv("CXX", f"{compiler} -DFACTOR=5")
    assert doubled(load(source), 3.0) == 15.0


def test_error_of_the_compiler_is_shown_in_part(source):
    source.write_text('extern "C" int f() { return wrong; }\n' * 40)
    with pytest.raises(CompileError, match="wrong") as caught:
        load(source)
    assert str(source) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= compiled.SHOWN_LINES + 1
    assert kept() == []


def script(folder, text):
    file = folder / "compiler"
    file.write_text(f"#!{sys.executable}\n{text}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_compiler_without_openmp_will_do(source, tmp_path, monkeypatch):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the test needs g++")
    refuse = "import sys, os\nif '-fopenmp' in sys.argv: sys.exit('no openmp')\n"
    refuse += f"os.execv({compiler!r}, [{compiler!r}, *sys.argv[1:]])"
    monkeypatch.setenv("CXX", script(tmp_path, refuse))
    assert doubled(load(source), 3.0) == 6.0


def test_what_cannot_be_loaded_is_told(source, tmp_path, monkeypatch):
    # Writes something that is no library.
    text = "import sys\nopen(sys.argv[sys.argv.index('-o') + 1], 'w').write('no library')"
    monkeypatch.setenv("CXX", script(tmp_path, text))
    with pytest.raises(CompileError, match="was compiled but cannot be loaded"):
        load(source)


def test_compiler_that_cannot_be_run_is_told(source, tmp_path, monkeypatch):
    command = script(tmp_path, "")
    (tmp_path / "compiler").write_text("#!/no/such/interpreter\n")
    monkeypatch.setenv("CXX", command)
    with pytest.raises(CompileError, match="cannot be run"):
        load(source)


def test_compiler_that_hangs_is_ended(source, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "TIME_LIMIT", 1)
    monkeypatch.setenv("CXX", script(tmp_path, "import time\ntime.sleep(60)"))
    with pytest.raises(CompileError, match="took over 1 s"):
        load(source)


def test_cache_that_cannot_be_written_is_told(source, tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    with pytest.raises(CompileError, match=r"could not be written: .* set XDG_CACHE_HOME"):
        load(source)


def test_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cadence" / "compiled"


def test_several_processes_at_once_get_a_whole_library(source):
    call = (
        "import sys, ctypes; from pathlib import Path; from policy.nets.compiled import load;"
        "f = load(Path(sys.argv[1])).doubled; f.restype = ctypes.c_double;"
        "f.argtypes = [ctypes.c_double]; print(f(3.0))"
    )
    command = [sys.executable, "-c", call, str(source)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in processes] == ["6.0"] * 3
    assert len(kept()) == 2
