"""An exported policy plans as its checkpoint does; what it is made of is checked before it is used.

Graphs are here the calls themselves, so that all that is not an exporter's work is exact.
"""

import dataclasses
import errno
import json
import math
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import packaged_policies as given
import pytest
import torch

from policy.agent import Agent, NotFiniteError
from policy.entry import CONFIGS
from policy.packaged import calls, graphs, machine, manifest
from policy.packaged.agent import PackagedAgent, load_package
from policy.packaged.formats import refusal
from policy.packaged.making import export_parts
from policy.packaged.manifest import PackageError
from policy.packaged.onnx import ONNX
from policy.packaged.parity import Parity, history_of, latency, tick_parity
from policy.planning import AgentPlanner
from policy.types import Request

SAMPLERS = sorted(path.stem for path in (CONFIGS / "sampler").glob("*.yaml"))


def both(sampler: str, **settings) -> tuple[Agent, PackagedAgent]:
    agents = given.agents_of(sampler, **settings)
    return agents[0], given.packaged(agents)[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_stream_is_bit_for_bit_that_of_the_agent(sampler):
    agent, package = both(sampler)
    rng = np.random.default_rng(0)
    streams = [one.start([7]) for one in (agent, package)]
    for executed in (3, 0, 2, 3, 8):
        observation = given.seen(given.PLAIN, rng)
        chunk, packaged = (
            one.chunk(s, observation) for one, s in zip((agent, package), streams, strict=True)
        )
        np.testing.assert_array_equal(packaged, chunk)
        assert packaged.dtype == chunk.dtype
        for one, s in zip((agent, package), streams, strict=True):
            one.shift(s, executed)
    assert package.calls == agent.calls


@pytest.mark.parametrize("sampler", ["ddim_3", "streaming", "rti"])
def test_planners_of_both_answer_every_request_alike(sampler):
    agents = given.agents_of(sampler, max_delay=1)
    planners = [AgentPlanner(agents), AgentPlanner(given.packaged(agents))]
    assert planners[1].contract == dataclasses.replace(
        planners[0].contract, statistics=agents[0].policy.normalizer.digest()
    )
    assert planners[1].max_delay == 1
    rng = np.random.default_rng(1)
    # (tick, epoch, delay): on time, late, later than the plan, again at once, and a new epoch.
    for tick, epoch, delay in [(0, 0, 0), (3, 0, 1), (6, 0, 2), (30, 0, 5), (30, 0, 0), (31, 1, 1)]:
        history = {name: values[0] for name, values in given.seen(given.PLAIN, rng).items()}
        request = Request(history, tick, epoch=epoch, seed=epoch + 3, delay=delay)
        ours, theirs = (planner(request) for planner in planners)
        np.testing.assert_array_equal(theirs.actions, ours.actions)
        assert theirs.tick0 == ours.tick0
    planners[1].warm_up()


def test_pictures_angles_and_tasks_with_scales_of_their_own():
    agent, package = both("rti", contract=given.RICH)
    rng = np.random.default_rng(0)
    ours, theirs = agent.start([1]), package.start([1])
    for task in (0, 0, 1, 1, 0):  # Where the task is another one, the stream is renewed.
        observation = given.seen(given.RICH, rng, task=task)
        np.testing.assert_array_equal(
            package.chunk(theirs, observation), agent.chunk(ours, observation)
        )
        agent.shift(ours, 3)
        package.shift(theirs, 3)
    observation["task"][:] = 0.5
    with pytest.raises(ValueError, match="exactly one of the 2 elements must be 1"):
        package.chunk(theirs, observation)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_a_goal_counts_as_it_did_when_the_package_was_made(weight):
    agent, package = both("ddim_3", contract=given.GOAL, goal_weight=weight)
    seen = given.seen(given.GOAL, np.random.default_rng(0))
    chunks = []
    for goal in (0.0, 1.0):
        observation = seen | {"goal": np.full_like(seen["goal"], goal)}
        chunks.append(package.chunk(package.start([3]), observation))
        np.testing.assert_array_equal(chunks[-1], agent.chunk(agent.start([3]), observation))
    assert (chunks[0] == chunks[1]).all() == (weight == 0)
    assert package.manifest.goal_weight == weight


def test_what_is_not_finite_is_named_by_tick_and_level():
    agent, package = both("streaming")
    for one in (agent, package):
        streams = one.start([5])
        observation = given.seen(given.PLAIN, np.random.default_rng(0))
        observation["state"][:] = np.nan
        with pytest.raises(NotFiniteError, match="stream of seed 5 at tick 0, first at sigma 20"):
            one.chunk(streams, observation)


def test_an_observation_that_does_not_fit_is_named():
    _, package = both("ddim_3")
    streams, fine = package.start([0]), given.seen(given.PLAIN, np.random.default_rng(0))
    with pytest.raises(KeyError, match="lacks 'speed'"):
        package.chunk(streams, {"state": fine["state"]})
    with pytest.raises(ValueError, match=r"'state' has shape \(1, 1, 3\).*needs \(1, 2, 3\)"):
        package.chunk(streams, fine | {"state": fine["state"][:, :1]})
    _, rich = both("ddim_3", contract=given.RICH)
    observation = given.seen(given.RICH, np.random.default_rng(0))
    with pytest.raises(ValueError, match="'camera' is float32, the contract says uint8"):
        rich.chunk(
            rich.start([0]), observation | {"camera": observation["camera"].astype(np.float32)}
        )
    with pytest.raises(ValueError, match="2 streams are asked for"):
        package.start([0, 1])
    with pytest.raises(ValueError, match="9 actions were executed, a chunk has 8"):
        package.shift(streams, 9)


def test_samplers_that_a_package_cannot_follow_are_refused(monkeypatch):
    agent = given.agents_of("ddim_3")[0]
    monkeypatch.setattr(
        agent.sampler, "shift", lambda carry, n: carry.replace(x=2 * carry.x), raising=False
    )
    with pytest.raises(PackageError, match="Sequential moves its carry in a way of its own"):
        calls.shift_of(agent)
    monkeypatch.setattr(type(agent.sampler), "nfe", 5)
    with pytest.raises(PackageError, match=r"makes 2 denoiser calls and says that they are\s+5"):
        calls.tick_calls([agent])


def test_the_manifest_is_what_was_written(tmp_path):
    written, _ = given.without_export(given.agents_of("streaming", max_delay=1))
    (tmp_path / manifest.MANIFEST).write_text(manifest.text_of(written))
    for path in (tmp_path, tmp_path / manifest.MANIFEST):
        assert manifest.is_package(path)
        assert manifest.read_manifest(path) == (written, tmp_path)
    assert set(written.graphs) == {"tick", "start", "tick_delay_1", "start_delay_1"}
    specs = {spec.name: (spec.shape, spec.dtype) for spec in written.graphs["tick"].inputs}
    assert specs["observation.speed"] == ((1, 2, 2), "float64")
    assert specs["x"] == ((1, 8, 2), "float32")
    assert specs["sigma"] == ((1, 8), "float32")
    assert written.graphs["tick"].noise == ((1, 8, 2),)
    assert not manifest.is_package(tmp_path / "other")


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("nfe", 9, "is not as it was written"),
        ("contract", {}, "is not as it was written"),
        ("format_version", 2, "has format version 2, this program reads up to 1"),
        ("format_version", None, "is damaged"),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path, entry, value, message):
    written, _ = given.without_export(given.agents_of("ddim_3"))
    changed = json.loads(manifest.text_of(written)) | {entry: value}
    (tmp_path / manifest.MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(PackageError, match=message):
        manifest.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite', known are aot, onnx"),
        ({"what": "poem"}, "what is 'poem'"),
        ({"shift": "jump"}, "shift is 'jump'"),
        ({"graphs": {"tick": {}}}, "wrong or missing entry"),
    ],
)
def test_a_manifest_of_other_things_is_refused(tmp_path, changes, message):
    written, _ = given.without_export(given.agents_of("ddim_3"))
    entry = written.to_json() | changes
    whole = entry | {"digest": manifest._digest(entry)}
    (tmp_path / manifest.MANIFEST).write_text(json.dumps(whole))
    with pytest.raises(PackageError, match=message):
        manifest.read_manifest(tmp_path)


def test_a_manifest_that_is_no_json_or_not_there_is_refused(tmp_path):
    with pytest.raises(PackageError, match=r"there is no package\.json in"):
        load_package(tmp_path)
    for text in ("", "{", "[]", "{}", '"x"'):
        (tmp_path / manifest.MANIFEST).write_text(text)
        with pytest.raises(PackageError, match="is damaged"):
            load_package(tmp_path)


def test_packages_that_plan_nothing_or_lack_a_graph_are_refused(tmp_path):
    written, _ = given.without_export(given.agents_of("ddim_3"))
    for changes, message in [
        ({"what": "denoiser"}, "holds a denoiser, which plans nothing"),
        ({"max_delay": 1}, r"lacks the graphs \['tick_delay_1'\]"),
    ]:
        changed = dataclasses.replace(written, **changes)
        (tmp_path / manifest.MANIFEST).write_text(manifest.text_of(changed))
        with pytest.raises(PackageError, match=message):
            load_package(tmp_path)


def test_files_are_as_they_were_written(tmp_path):
    file = tmp_path / "tick.onnx"
    file.write_bytes(b"0123456789")
    graph = manifest.GraphFile(file.name, *manifest.fingerprint(file), (), ())
    assert manifest.check_file(tmp_path, graph) == file
    for content, message in [
        (b"012345678", "its size is 9, written was 10"),
        (b"0123456780", "its sha256 is"),
    ]:
        file.write_bytes(content)
        with pytest.raises(PackageError, match=message):
            manifest.check_file(tmp_path, graph)
    file.unlink()
    (tmp_path.parent / "tick.onnx").write_bytes(b"0123456789")
    for name in (file.name, "../tick.onnx"):  # A package's files are in its folder.
        with pytest.raises(PackageError, match="is missing"):
            manifest.check_file(tmp_path, dataclasses.replace(graph, file=name))


def test_kernels_are_for_the_gpus_they_were_compiled_for(monkeypatch):
    here = machine.processor()
    assert "gpu" not in here
    monkeypatch.setattr(machine, "_gpu", lambda: "8.6")
    made = machine.processor("cuda")
    assert made["gpu"] == "8.6"
    assert machine.lacking(made) == ""
    monkeypatch.setattr(machine, "_gpu", lambda: "9.0")
    assert machine.lacking(made).endswith("of compute capability 8.6, here is 9.0")
    monkeypatch.setattr(machine, "_gpu", lambda: "")
    assert machine.lacking(made).endswith("here is none")
    assert machine.lacking(here) == ""


def test_a_disk_that_is_full_is_no_fault_of_the_sampler():
    call: Any = SimpleNamespace(name="tick")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = str(refusal(call, "onnx", full))
    assert "could not be written (No space left on device)" in said
    assert "use another sampler" in str(refusal(call, "onnx", OSError("no source code")))


def test_code_for_another_processor_is_refused():
    here = machine.processor()
    assert machine.lacking(here) == ""
    assert "amx_of_2040" in machine.lacking(here | {"features": [*here["features"], "amx_of_2040"]})
    assert machine.lacking(here | {"features": here["features"][1:]}) == ""
    assert "made for aarch9" in machine.lacking(here | {"machine": "aarch9"})


def test_a_processor_that_does_not_tell_is_compared_by_what_torch_makes_of_it(monkeypatch):
    monkeypatch.setattr(machine, "_features", lambda machine: [])
    here = machine.processor()
    assert machine.lacking(here) == ""
    assert "AVX9000" in machine.lacking(here | {"capability": "AVX9000"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processor": {"system": "Plan9"}}, "cannot run on this machine: it was made for Plan9"),
        ({"versions": {"torch": "1.0.0"}}, r"made with torch 1\.0\.0, this is torch"),
        ({"device": "cuda"}, "made for cuda, which is not there"),
    ],
)
def test_native_code_of_other_machines_is_not_loaded(tmp_path, changes, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    written, _ = given.without_export(given.agents_of("ddim_3"))
    changed = dataclasses.replace(written, format="aot", **changes)
    with pytest.raises(PackageError, match=message):
        graphs.open_graphs(changed, tmp_path)


def test_parity_is_the_difference_in_the_actions_own_scale():
    agents = given.agents_of("ddim_3")
    written, made = given.without_export(agents)
    off = torch.tensor([0.0, 0.02])
    scale = agents[0].policy.normalizer.get_buffer("action/scale")

    def tick(tensors):
        actions, *rest = made["tick"](tensors)
        return [actions + off * scale, *rest]

    package = PackagedAgent(written, {"tick": tick})
    parity = tick_parity(agents[0].policy, [(agents[0], package)], n_streams=2, n_ticks=3)
    assert parity.max_error == pytest.approx(0.02, rel=1e-3)  # float32 rounds actions of size 1.
    assert parity.n_compared == 6
    parity.check(0.021)
    with pytest.raises(ValueError, match=r"by 0\.02 of the action's scale.*tolerance is 0\.001"):
        parity.check(0.001)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_results_that_are_no_numbers_are_in_no_tolerance(wrong):
    with pytest.raises(ValueError, match=f"by {wrong} of the action's scale.*another format$"):
        Parity(wrong, 1, "1 call").check(1e9)


def test_a_scale_that_was_not_asked_of_the_task_is_found():
    agents = given.agents_of("ddim_3", contract=given.RICH)
    written, made = given.without_export(agents)
    place = [spec.name for spec in written.graphs["tick"].inputs].index("observation.task")

    def of_the_first_task(tensors):
        told = torch.zeros_like(tensors[place])
        told[..., 0] = 1
        return made["tick"]([*tensors[:place], told, *tensors[place + 1 :]])

    package = PackagedAgent(written, {"tick": of_the_first_task})
    parity = tick_parity(agents[0].policy, [(agents[0], package)], n_streams=2, n_ticks=1)
    assert parity.max_error > 0.1


def test_a_start_that_fails_leaves_a_stream_to_begin():
    agents = given.agents_of("streaming")
    written, made = given.without_export(agents)
    is_broken = False

    def start(tensors):
        if is_broken:
            raise RuntimeError("out of memory")
        return made["start"](tensors)

    package = PackagedAgent(written, {**made, "start": start})
    streams, seen = package.start([5]), given.seen(given.PLAIN, np.random.default_rng(0))
    package.chunk(streams, seen)
    package.renew(streams, 0)
    is_broken = True
    for _ in range(2):  # The second time, too: nothing old is gone on with.
        with pytest.raises(RuntimeError, match="out of memory"):
            package.chunk(streams, seen)


def test_what_is_compared_lies_within_the_statistics():
    policy = given.policy_of(given.RICH)
    history = history_of(policy, np.random.default_rng(0))
    assert {name: values.dtype for name, values in history.items()} == {
        "arm": np.float32,
        "camera": np.uint8,
        "task": np.float32,
    }
    assert (np.abs(history["arm"][..., 1]) <= np.pi).all()
    lowest, highest = history["arm"][..., ::2].min(), history["arm"][..., ::2].max()
    assert -2 <= lowest < highest <= 3  # those of the demonstrations
    np.testing.assert_array_equal(history["task"][0], [[1, 0], [1, 0]])
    for task, told in ((1, [0, 1]), (2, [1, 0])):
        history = history_of(policy, np.random.default_rng(0), task=task)
        np.testing.assert_array_equal(history["task"][0], [told, told])


def test_latency_takes_turns():
    order: list[str] = []
    measured = latency([lambda: order.append("a"), lambda: order.append("b")], n=3)
    assert order == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 3
    assert all(0 <= m["p50"] <= m["p95"] <= m["p99"] for m in measured)


def test_a_policy_of_other_numbers_than_float32_is_refused(tmp_path):
    policy = given.policy_of.__wrapped__(given.PLAIN).double()
    with pytest.raises(PackageError, match=r"has weights of torch\.float64"):
        export_parts(policy, ONNX(), tmp_path / "out", given.SOURCE, tolerance=1, n_timed=1)
