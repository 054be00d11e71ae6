"""Packages as files: written by torch's exporters, loaded without the code that trained."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import packaged_policies as given
import pytest
import torch

from policy import export, export_policy, serve
from policy.agent import NotFiniteError
from policy.entry import compose_config
from policy.packaged.agent import load_package
from policy.packaged.aot import AOT
from policy.packaged.calls import Call
from policy.packaged.graphs import open_graphs
from policy.packaged.making import export_parts, export_ticks
from policy.packaged.manifest import MANIFEST, PackageError, read_manifest
from policy.packaged.onnx import NEEDED, ONNX
from policy.packaged_planner import package_planner
from policy.planning import AgentPlanner
from policy.types import Request

ROOT = Path(__file__).resolve().parents[2]
ROUNDING = 1e-4  # of float32 over a chunk, in other orders of summation


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_onnx = pytest.mark.skipif(
    not all(map(installed, NEEDED)), reason='ONNX is not installed: pip install "cadence[onnx]"'
)


def plans(planner: AgentPlanner, contract: str = given.PLAIN) -> list[np.ndarray]:
    """Five chunks of one stream, and the first of another."""
    rng, made = np.random.default_rng(4), []
    for i in range(6):
        history = {name: values[0] for name, values in given.seen(contract, rng).items()}
        made.append(planner(Request(history, tick=3 * i, epoch=i // 5, seed=11 + i // 5)).actions)
    return made


def exported(sampler: str, format: ONNX | AOT, out: Path, **settings) -> tuple[AgentPlanner, Path]:
    """The planner of a checkpoint, and the package that is made of it."""
    agents = given.agents_of(sampler, **settings)
    made = export_ticks(
        agents, format, out, given.SOURCE, tolerance=1e-3, n_timed=2, progress=lambda _: None
    )
    assert 0 <= made.parity["max_error"] < ROUNDING
    return AgentPlanner(agents), out


@pytest.fixture(scope="module")
def onnx_rti(tmp_path_factory) -> tuple[AgentPlanner, Path]:
    if not all(map(installed, NEEDED)):
        pytest.skip('ONNX is not installed: pip install "cadence[onnx]"')
    return exported("rti", ONNX(), tmp_path_factory.mktemp("onnx") / "rti")


@pytest.fixture(scope="module")
def aot_ddim(tmp_path_factory) -> tuple[AgentPlanner, Path]:
    try:
        AOT().check(torch.device("cpu"))
    except PackageError as error:
        pytest.skip(str(error))
    return exported("ddim_3", AOT(), tmp_path_factory.mktemp("aot") / "ddim")


def test_onnx_plans_as_the_checkpoint_does(onnx_rti):
    eager, folder = onnx_rti
    for ours, theirs in zip(plans(eager), plans(load_package(folder)), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=ROUNDING)
    assert {file.name for file in folder.iterdir()} == {MANIFEST, "tick.onnx", "start.onnx"}


@needs_onnx
def test_a_stream_of_onnx_goes_on_towards_its_goal_as_the_checkpoints_does(tmp_path):
    out, goal = tmp_path / "streaming", given.GOAL
    eager, folder = exported("streaming", ONNX(), out, contract=goal, goal_weight=2.0)
    for ours, theirs in zip(plans(eager, goal), plans(load_package(folder), goal), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=ROUNDING)


def test_native_code_plans_as_the_checkpoint_does(aot_ddim):
    eager, folder = aot_ddim
    for ours, theirs in zip(plans(eager), plans(load_package(folder)), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=ROUNDING)
    assert {file.name for file in folder.iterdir()} == {MANIFEST, "tick.pt2"}


def test_damaged_native_code_is_not_run(aot_ddim, tmp_path):
    _, folder = aot_ddim
    (tmp_path / MANIFEST).write_bytes((folder / MANIFEST).read_bytes())
    content = (folder / "tick.pt2").read_bytes()
    for damaged in (content[:-1], b"", content[:1000] + b"x" + content[1001:]):
        (tmp_path / "tick.pt2").write_bytes(damaged)
        with pytest.raises(PackageError, match="is damaged"):
            load_package(tmp_path)
    (tmp_path / "tick.pt2").unlink()
    with pytest.raises(PackageError, match="is missing"):
        load_package(tmp_path)


WITHOUT_TRAINING = """
import json, sys
import numpy as np

NOT_NEEDED = ("hydra", "omegaconf", "zarr", "gymnasium", "mujoco", "onnx", "onnxscript", "envs",
    "policy.nets", "policy.diffusion", "policy.guidance", "policy.model", "policy.agent",
    "policy.build", "policy.tick", "policy.checkpoint", "policy.engine", "data.store",
    "data.normalize")

sys.modules.update(dict.fromkeys(NOT_NEEDED))  # Importing them is an ImportError.
from policy.packaged.agent import load_package
from policy.serving.service import Service
from policy.types import Request

planner = load_package(sys.argv[1])
service = Service(planner, warm_up=planner.warm_up, token=None, lease_seconds=1.0, name="package",
    nfe=planner.agent.nfe)
given = np.load(sys.argv[2])
chunk = planner(Request(dict(given), tick=0, seed=3))
print(json.dumps([service.contract.statistics, chunk.actions.tolist()]))
"""


@pytest.mark.parametrize("package", ["onnx_rti", "aot_ddim"])
def test_a_package_is_served_without_what_trained_it(package, tmp_path, request):
    eager, folder = request.getfixturevalue(package)
    observation = given.seen(given.PLAIN, np.random.default_rng(0))
    history = {name: values[0] for name, values in observation.items()}
    np.savez(tmp_path / "seen.npz", **history)
    command = [sys.executable, "-c", WITHOUT_TRAINING, str(folder), str(tmp_path / "seen.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    statistics, actions = json.loads(done.stdout.splitlines()[-1])
    assert statistics == read_manifest(folder)[0].contract.statistics != ""
    wanted = eager(Request(history, tick=0, epoch=99, seed=3)).actions
    np.testing.assert_allclose(actions, wanted, atol=ROUNDING)


@needs_onnx
def test_parts_are_those_of_the_policy(tmp_path):
    policy = given.policy_of(given.RICH).eval().requires_grad_(False)
    out = tmp_path / "parts"
    made = export_parts(
        policy, ONNX(), out, given.SOURCE, tolerance=1e-3, n_timed=2, progress=lambda _: None
    )
    assert {name: [spec.name for spec in graph.inputs] for name, graph in made.graphs.items()} == {
        "encoder": ["observation.arm", "observation.camera", "observation.task"],
        "denoiser": ["x", "sigma", "cond"],
        "decoder": ["x0_hat", "observation.task"],
    }
    graphs = open_graphs(*read_manifest(out))
    seen = given.seen(given.RICH, np.random.default_rng(0), task=1)
    observation = {name: torch.from_numpy(values) for name, values in seen.items()}
    (cond,) = graphs["encoder"](list(observation.values()))
    x, sigma = torch.randn(1, 8, 2), torch.full((1, 8), 0.7)
    (x0_hat,) = graphs["denoiser"]([x, sigma, cond])
    (actions,) = graphs["decoder"]([x0_hat, observation["task"]])
    wanted = policy(x, sigma, policy.encode(observation))
    torch.testing.assert_close(x0_hat, wanted, atol=ROUNDING, rtol=0)
    wanted = policy.actions(wanted, observation)[:, 1:]
    torch.testing.assert_close(actions, wanted, atol=10 * ROUNDING, rtol=0)  # Ten times as wide.


class Failing:
    """A format that cannot write anything."""

    name, suffix = "onnx", ".onnx"

    def __init__(self, error: BaseException):
        self.error = error

    def check(self, device: torch.device) -> None:
        return None

    def versions(self) -> dict[str, str]:
        return {}

    def write(self, call, file: Path) -> None:
        file.write_bytes(b"half")
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PackageError("it cannot be")])
def test_an_export_that_ends_early_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        export_ticks(
            given.agents_of("ddim_3"),
            Failing(error),
            tmp_path / "out",
            given.SOURCE,
            tolerance=1,
            n_timed=1,
            progress=lambda _: None,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PackageError, match="cannot be made there"):
        export_ticks(
            given.agents_of("ddim_3"),
            Failing(ValueError()),
            tmp_path / "file" / "deeper" / "out",
            given.SOURCE,
            tolerance=1,
            n_timed=1,
        )


def test_a_link_to_nothing_is_not_replaced(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PackageError, match="exists: choose another place"):
        export_ticks(
            given.agents_of("ddim_3"),
            Failing(ValueError()),
            tmp_path / "out",
            given.SOURCE,
            tolerance=1,
            n_timed=1,
        )


@pytest.mark.parametrize("package", ["onnx_rti", "aot_ddim"])
def test_what_is_not_finite_is_seen_within_a_graph_and_forgotten(package, request):
    planner = load_package(request.getfixturevalue(package)[1])
    observation = given.seen(given.PLAIN, np.random.default_rng(0))
    history = {name: values[0] for name, values in observation.items()}
    for wrong in (np.nan, np.inf):
        broken = history | {"state": np.full_like(history["state"], wrong)}
        with pytest.raises(NotFiniteError, match="at tick 0, first at sigma"):
            planner(Request(broken, tick=0, epoch=1, seed=5))
    fresh = load_package(request.getfixturevalue(package)[1])
    np.testing.assert_array_equal(
        planner(Request(history, tick=0, epoch=2, seed=6)).actions,
        fresh(Request(history, tick=0, epoch=2, seed=6)).actions,
    )


def test_what_is_there_is_not_replaced(tmp_path):
    with pytest.raises(PackageError, match="exists: choose another place"):
        export_ticks(
            given.agents_of("ddim_3"),
            Failing(ValueError()),
            tmp_path,
            given.SOURCE,
            tolerance=1,
            n_timed=1,
        )


@needs_onnx
def test_a_sampler_that_onnx_has_no_operators_for_is_named(tmp_path):
    class Untraceable(torch.nn.Module):
        def forward(self, *tensors):
            return (torch.linalg.eigvals(tensors[0][0].double()).real,)

    call = Call("tick", Untraceable(), (torch.eye(2)[None],), (), ())
    with pytest.raises(PackageError, match="the tick cannot be exported as onnx"):
        ONNX().write(call, tmp_path / "tick.onnx")


@needs_onnx
def test_a_gradient_through_convolutions_is_no_part_of_onnx(tmp_path):
    class Guided(torch.nn.Module):
        def forward(self, *tensors):
            with torch.enable_grad():
                x = tensors[0].detach().requires_grad_()
                y = torch.nn.functional.conv1d(x, torch.ones(2, 2, 3), stride=2).square().sum()
                return torch.autograd.grad(y, x)

    call = Call("tick", Guided(), (torch.ones(1, 2, 8),), (), ())
    with pytest.raises(PackageError, match="follows a gradient through the network"):
        ONNX().write(call, tmp_path / "tick.onnx")


def test_programs_that_are_missing_are_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PackageError, match="no-such-compiler is not found on PATH"):
        AOT().check(torch.device("cpu"))
    monkeypatch.setenv("CXX", f"{sys.executable} -O9")  # A command that is there, with its options.
    AOT().check(torch.device("cpu"))
    monkeypatch.setattr("policy.packaged.onnx.NEEDED", ("no-such-package",))
    with pytest.raises(ImportError, match=r"no-such-package is not installed.*cadence\[onnx\]"):
        ONNX().check(torch.device("cpu"))


@needs_onnx
def test_onnx_is_written_on_the_cpu():
    with pytest.raises(PackageError, match="device is cuda"):
        ONNX().check(torch.device("cuda"))


def test_onnx_packages_need_their_program(onnx_rti, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="ONNX packages need onnxruntime"):
        load_package(onnx_rti[1])


# The verbs.


def command(monkeypatch, *arguments: object) -> int:
    """Run the verb as the command line does; its exit status."""
    monkeypatch.setattr(sys, "argv", ["cadence", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        export.main()
    return int(end.value.code or 0)


@needs_onnx
def test_a_checkpoint_is_exported_and_planned_with(
    pillar_checkpoint, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "package"
    settings = ["sampler.grid.n_steps=2", "n_timed=2"]
    arguments = ["format=onnx", f"checkpoint={pillar_checkpoint}", f"out={out}", *settings]
    assert command(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "parity: largest error" in said
    assert "latency of a chunk, p50 / p95 / p99: eager" in said
    assert f"serve it: cadence serve checkpoint={out}" in said
    manifest, _ = read_manifest(out)
    assert manifest.sampler["grid"]["n_steps"] == manifest.nfe == 2
    assert manifest.checkpoint["step"] == 0

    planner = package_planner(compose_config("serve", [f"checkpoint={out}"]), "serve")
    assert planner.contract.task == manifest.contract.task
    for changes, message in [
        ("action_horizon=2", "action_horizon is 2, which the package"),
        ("goal_weight=2.0", r"goal_weight is 2\.0"),
        ("sampler=ddim_16", "sampler is another one"),
        ("urgent=ddim_3", "urgent is ddim_3"),
        ("foresight=true", "foresight is True"),
        ("engine=eager", "engine is another one"),
        ("device=cuda", "device is cuda"),
    ]:
        with pytest.raises(PackageError, match=message):
            package_planner(compose_config("serve", [f"checkpoint={out}", changes]), "serve")
    served = serve.planner_of(compose_config("serve", [f"checkpoint={out}"]))
    assert f"package {out}: 2 calls per" in capsys.readouterr().out
    assert served.contract == planner.contract
    run = ["env=pillar", f"checkpoint={out}"]
    assert package_planner(compose_config("run", run), "run").contract == planner.contract


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=onnx"], "please give checkpoint=..."),
        (["format=onnx", "checkpoint=RUN", "what=poem"], "what is 'poem', choose one of tick"),
        (["format=onnx", "checkpoint=RUN", "store.path=x"], "this format is of policies"),
        (["format=lerobot_v3", "checkpoint=RUN", "store.path=x"], "this format is of stores"),
        (["format=onnx", "checkpoint=RUN", "max_delay=-1"], "max_delay is -1"),
        (["format=onnx", "checkpoint=RUN", "n_timed=0"], "n_timed is 0"),
        (["format=onnx", "checkpoint=RUN", "tolerance=-1.0"], "tolerance is -1.0"),
        (["format=onnx", "checkpoint=RUN", "what=denoiser", "max_delay=1"], "what=denoiser has no"),
        (["format=onnx", "checkpoint=RUN", "sampler=fitted"], "there is no fitted grid of 4 steps"),
        (["format=onnx", "checkpoint=RUN", "max_delay=9"], "inference_delay is 9"),
        (["format=onnx", "checkpoint=nowhere"], "there is no checkpoint in"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    pillar_checkpoint, tmp_path, monkeypatch, capsys, arguments, message
):
    if not all(map(installed, NEEDED)):
        pytest.skip('ONNX is not installed: pip install "cadence[onnx]"')
    given_run = [a.replace("RUN", str(pillar_checkpoint)) for a in arguments]
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *given_run, f"out={tmp_path / 'out'}") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_entry_is_what_the_verb_calls(monkeypatch):
    monkeypatch.setattr(export_policy, "export_policy", lambda cfg: Path(str(cfg.format._target_)))
    cfg = compose_config("export", ["format=aot", "~store"])
    assert export.run(cfg) == Path("policy.packaged.aot.AOT")
