"""Ticks by torch's compilers; seconds each, of one small network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_tick import Net
from test_use_engine import agent_of, chunks

from policy.engine import EngineSettings, use_engine

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"
)


@needs_compiler
@pytest.mark.parametrize("name", ["compile", "aot"])
def test_compilers_give_the_chunks_of_the_network(tmp_path, monkeypatch, name):
    settings = EngineSettings(name=name, cache=tmp_path)
    agent = agent_of(Net())
    expected = chunks(agent)
    line = use_engine([agent], settings)
    assert line.startswith(f"engine: {name}, fp32 weights")
    # Fused operations round differently.
    np.testing.assert_allclose(chunks(agent), expected, rtol=1e-5, atol=1e-5)
    if name == "aot":
        (package,) = settings.cache.glob("*.pt2")
        made = package.stat().st_ino
        use_engine([agent_of(Net())], settings)
        assert package.stat().st_ino == made
        whole = package.read_bytes()

        def made_again(exported, *, package_path, **_):
            """What the compiler made before, which spares a second compilation."""
            assert package_path != str(package)  # Beside it, so that no reader finds half of it.
            Path(package_path).write_bytes(whole)
            return package_path

        monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", made_again)
        package.write_bytes(b"damaged")
        agent = agent_of(Net())
        use_engine([agent], settings)
        assert package.read_bytes() == whole
        np.testing.assert_allclose(chunks(agent), expected, rtol=1e-5, atol=1e-5)
