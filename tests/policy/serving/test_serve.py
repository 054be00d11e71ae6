"""`cadence serve`: settings, and a checkpoint that is served by a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate

from policy.entry import compose_config
from policy.planning import AgentPlanner
from policy.serve import read_token, run, settings_of
from policy.serving.client import RemotePlanner
from policy.types import Request

SECRET = "a secret of a good length"


def composed(*overrides: str):
    return compose_config("serve", ["checkpoint=there", *overrides])


def test_a_token_comes_from_a_file_or_from_a_named_variable(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("MY_TOKEN", SECRET)
    assert settings_of(composed(f"token_file={file}")).token == SECRET
    assert settings_of(composed("token_env=MY_TOKEN")).token == SECRET
    assert settings_of(composed()).token is None


@pytest.mark.parametrize(
    ("file", "variable", "found"),
    [("there", "HOME", "both"), ("nowhere", None, "no file"), (None, "NO_SUCH", "not set")],
)
def test_a_token_that_is_not_there_is_an_error_and_not_an_open_server(file, variable, found):
    with pytest.raises(ValueError, match=found):
        read_token(file, variable)


def test_names_of_digits_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="token_file is 12345, which is no file"):
        settings_of(composed("token_file=12345"))
    Path("12345").write_text(SECRET)
    assert settings_of(composed("token_file=12345")).token == SECRET
    with pytest.raises(ValueError, match="token_env is 12345"):
        settings_of(composed("token_env=12345"))
    with pytest.raises(ValueError, match="certfile 1 and keyfile 2"):
        settings_of(composed("certfile=1", "keyfile=2"))


def test_a_token_file_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "token"
    file.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=f"token_file is {file}"):
        read_token(str(file), None)


def test_x3_there_is_no_setting_for_the_token_itself():
    assert [key for key in composed() if "token" in str(key)] == ["token_file", "token_env"]
    with pytest.raises(ValueError, match="token"):
        run(composed("host=0.0.0.0"))


def test_a_served_checkpoint_plans_bit_for_bit_as_it_does_here(pillar_checkpoint: Path):
    command = [sys.executable, "-m", "policy.cli", "serve", f"checkpoint={pillar_checkpoint}"]
    process = subprocess.Popen(
        [*command, "port=0", "sampler=ddim_3", "engine=eager"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        ready = next(line for line in lines if line.startswith("ready"))
        address = ready.rsplit("=", 1)[1].strip()
        sampler = instantiate(compose_config("serve", ["sampler=ddim_3"]).sampler)
        local = AgentPlanner.load(pillar_checkpoint, sampler)
        with RemotePlanner(address, local.contract, deadline=30.0) as remote:
            assert remote.contract == local.contract
            rng = np.random.default_rng(0)
            for tick in (0, 8, 13):
                history = {
                    name: rng.normal(size=(local.horizons.obs, *field.shape)).astype(field.dtype)
                    for name, field in local.contract.observation.items()
                }
                asked = Request(history, tick, seed=7, delay=2)
                assert remote(asked).actions.tobytes() == local(asked).actions.tobytes()
        process.send_signal(signal.SIGTERM)
        assert list(lines)[-1] == "ended\n"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
