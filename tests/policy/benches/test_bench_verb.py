"""The verb on tiny sizes: all that it measures, its files, and its exit status."""

import json
import sys

import numpy as np
import pytest
import zarr

from policy import bench
from policy.bench import make_policy, make_sampler, measure, plan, run
from policy.benches.baseline import ratios_of
from policy.benches.figure import Mark, Panel, draw, panels
from policy.benches.lineup import Row, read_groups
from policy.benches.stage import Stage
from policy.benches.table import tables
from policy.entry import compose_config, pick_device, plain

TINY = [
    "device=cpu",
    "rounds=1",
    "seconds=0",
    "threads=1",
    "train.batch_size=4",
    "train.forms=[plain fp32]",
    "env.names=[pillar]",
    "env.num_envs=2",
    "data.seconds=0.001",
    "data.n_images=300",
    "lineup.groups=[{net: unet1d_small, threads: 1, peers: [2, 16], rows: ["
    "{sampler: fitted, set: {n_steps: 2}}, {sampler: rti, set: {n_steps: 1}, action: 2}]}]",
]


def tiny(tmp_path, *more):
    return compose_config("bench", [*TINY, f"out={tmp_path / 'out'}", *more])


def measured(tmp_path, *more):
    cfg = tiny(tmp_path, *more)
    return measure(cfg, plan(cfg))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """One run of all."""
    pytest.importorskip("diffusers", reason="a development dependency")
    folder = tmp_path_factory.mktemp("bench")
    assert run(tiny(folder, f"save={folder / 'kept.json'}")) == 0
    return folder, json.loads((folder / "out" / "bench.json").read_text())


def rows_of(block):
    return {row["name"]: row for row in block["rows"]}


def test_a_run_measures_everything_and_writes_its_files(everything):
    folder, results = everything
    assert {"latency", "train", "env", "data", "machine"} <= set(results)
    assert (folder / "out" / "bench.png").stat().st_size > 5000
    text = (folder / "out" / "bench.txt").read_text()
    for section in ("latency", "train", "env", "data"):
        blocks = results["latency"]["groups"] if section == "latency" else [results[section]]
        assert all(name in text for block in blocks for name in rows_of(block))


def test_each_row_is_compared_with_the_peer_of_its_calls_and_per_executed_action(everything):
    (group,) = everything[1]["latency"]["groups"]
    rows = rows_of(group)
    two, one = rows["fitted n_steps=2, eager fp32"], rows["rti n_steps=1, eager fp32, 2 executed"]
    assert (two["calls"], two["actions"]) == (2, 8)
    assert (one["calls"], one["actions"]) == (1, 2)
    peers = {row["calls"]: row for row in group["rows"] if row["is_peer"] and row["actions"]}
    p50 = {row["name"]: row["p50_ms"] for row in group["rows"]}
    assert two["equal_calls"]["value"] == pytest.approx(peers[2]["p50_ms"] / p50[two["name"]])
    assert one["equal_calls"] is None  # No peer makes one call.
    per_action = peers[16]["p50_ms"] / 8 / (one["p50_ms"] / 2)
    assert one["per_action"]["value"] == pytest.approx(per_action)
    assert one["per_action_ms"] == one["p50_ms"] / 2
    assert peers[16]["equal_calls"] is None
    assert "one call, eager fp32" in rows


def test_the_floor_is_that_of_the_network(everything):
    (group,) = everything[1]["latency"]["groups"]
    floor = group["floors"]["fp32"]
    assert floor["weight_bytes"] < 4 * group["weights"] < 1.2 * floor["weight_bytes"]
    assert floor["ms"] == pytest.approx(
        1e3
        * max(
            floor["weight_bytes"] / floor["bandwidth"],
            floor["multiply_adds"] / floor["matrix_rate"],
        )
    )
    row = rows_of(group)["fitted n_steps=2, eager fp32"]
    assert row["floor_ms"] == pytest.approx(2 * floor["ms"])
    assert row["over_floor"] == pytest.approx(row["p50_ms"] / row["floor_ms"])


def test_the_profile_of_a_step_adds_up(everything):
    train = everything[1]["train"]
    (ours,) = [row for row in train["rows"] if not row["is_peer"]]
    assert ours["windows_per_second"] == pytest.approx(1e3 * 4 / ours["step_p50_ms"])
    parts, work = ours["profile"]["parts_ms"], ("forward", "backward", "optimiser")
    assert {"windows", "noise", "average", "rest", *work} <= set(parts)
    share = sum(parts[part] for part in work) / sum(parts.values())
    assert ours["profile"]["overhead"] == pytest.approx(1 - share)


def test_environments_are_stepped_alone_and_together(everything):
    rows = rows_of(everything[1]["env"])
    assert {"pillar, one", "pillar, 2 on a thread", "pillar, 2 on all"} <= set(rows)
    assert all(row["steps_per_second"] > 0 for row in rows.values())


def test_a_run_like_the_kept_one_passes_and_one_that_fell_fails(everything, tmp_path, capsys):
    folder, _ = everything
    only = ("what=latency", "margin=0.99")
    assert run(tiny(tmp_path, *only, f"against={folder / 'kept.json'}")) == 0
    kept = json.loads((folder / "kept.json").read_text())
    kept["ratios"] = {name: 1e6 for name in kept["ratios"]}
    (tmp_path / "high.json").write_text(json.dumps(kept))
    assert run(tiny(tmp_path, *only, f"against={tmp_path / 'high.json'}")) == 1
    assert "fell" in capsys.readouterr().out


def test_without_the_package_the_peer_says_so_and_the_rest_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddim", None)
    results = measured(tmp_path, "what=latency")
    (group,) = results["latency"]["groups"]
    assert "cadence[dev]" in group["failures"]["peer"]
    assert len(group["rows"]) == 3
    assert ratios_of(results) == {}
    assert "not measured: peer" in tables(results)


def test_a_row_that_cannot_be_made_is_told_and_the_rest_runs(tmp_path):
    rows = "[{sampler: ddim_8, weights: int8}, {sampler: rti}, {sampler: rti, engine: fused}]"
    settings = f"lineup.groups=[{{net: mlp, threads: 1, rows: {rows}}}]"
    results = measured(tmp_path, "what=latency", settings)
    (group,) = results["latency"]["groups"]
    assert "engine=eager has weights=fp32" in group["failures"]["ddim_8, eager int8"]
    assert "it has no peer" in group["failures"]["peer"]
    assert {"rti, eager fp32", "rti, fused fp32"} <= set(rows_of(group))


def test_every_tick_sees_something_new():
    cfg = compose_config("bench", TINY)
    stage = Stage(
        make_policy(cfg, "mlp"),
        lambda row, action: make_sampler(cfg, row, action),
        device=pick_device("cpu"),
    )
    seen = [next(stage._observations)["state"] for _ in range(3)]
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_no_layer_of_a_measured_network_is_zero():
    cfg = compose_config("bench", TINY)
    policy = make_policy(cfg, "unet1d_small")
    assert not all(parameter.any() for parameter in policy.net.parameters())
    Stage(policy, lambda row, action: make_sampler(cfg, row, action), device=pick_device("cpu"))
    assert all(parameter.any() for parameter in policy.net.parameters())


@pytest.mark.parametrize("sampler", ["fitted", "anchored", "streaming", "rtc_prefix"])
def test_samplers_that_need_a_fit_are_given_one(sampler):
    cfg = compose_config("bench", TINY)
    made = make_sampler(cfg, Row(sampler, {"n_steps": 2}), 4)
    assert made.space.horizons.action == 4
    assert made.nfe >= 1


def test_pictures_of_a_store_are_read_too(tmp_path):
    group = zarr.open_group(tmp_path / "shown.zarr", mode="w")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)
    group.create_array("data/img", data=pictures)
    group.create_array("data/action", data=rng.normal(size=(40, 2)).astype(np.float32))
    group.create_array("meta/episode_ends", data=np.array([20, 40]))
    results = measured(tmp_path, "what=data", f"data.store={tmp_path / 'shown.zarr'}")
    rows = rows_of(results["data"])
    assert {f"shown.zarr, {what}" for what in ("as published", "memory", "cache", "store")} <= (
        set(rows)
    )
    memory = rows["shown.zarr, memory"]
    published = rows["shown.zarr, as published"]["windows_per_second"]
    assert memory["other"] == "shown.zarr, as published"
    assert rows["pictures, store"]["other"] == "pictures, memory"
    told = tables(results)
    for row in rows.values():
        if row["other"]:
            assert f"{row['over_other']['value']:.2f} x {row['other']}" in told
    (panel,) = panels(results)
    notes = {mark.name: mark.note for mark in panel.marks}
    assert notes["shown.zarr, memory"].endswith("x as published)")
    assert notes["pictures, store"].endswith("x memory)")
    assert memory["over_other"]["value"] == pytest.approx(memory["windows_per_second"] / published)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("what=everything", "what is 'everything', choose one of all, latency, train, env, data"),
        ("rounds=0", "rounds is 0"),
        ("margin=1", "margin is 1"),
        ("env.names=[]", "env.names is empty"),
        ("env.names=[moon]", "env is 'moon', choose one of"),
        ("train.net=moon", "net is 'moon', choose one of"),
        ("train.batch_size=0", "train.batch_size is 0"),
        ("train.forms=[]", "train.forms"),
        ("train.forms=[plain]", "train.forms holds 'plain'"),
        ("train.forms=[quick fp32]", "train.forms holds 'quick fp32'"),
        ("data.store=nowhere.zarr", "data.store=nowhere.zarr does not exist"),
        ("lineup.groups=[{net: moon, rows: [{sampler: ddim_8}]}]", "net is 'moon', choose"),
        ("lineup.groups=[{net: mlp, rows: [{sampler: moon}]}]", "sampler is 'moon', choose"),
        ("lineup.groups=[{net: mlp, rows: [{sampler: ddim_8, action: 17}]}]", "17"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_measured(
    tmp_path, monkeypatch, setting, message
):
    def never(*args, **kwargs):
        raise AssertionError("something was measured")

    for name in ("measure_group", "measure_training", "measure_environments", "measure_data"):
        monkeypatch.setattr(bench, name, never)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        run(tiny(tmp_path, setting))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_baseline_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "kept.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no positive ratios"):
        run(tiny(tmp_path, f"against={tmp_path / 'kept.json'}"))
    assert not (tmp_path / "out").exists()


def test_a_folder_cannot_hold_ratios(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        run(tiny(tmp_path, f"save={tmp_path}"))
    assert not (tmp_path / "out").exists()


def test_what_was_measured_before_an_interruption_is_kept(tmp_path, monkeypatch):
    def interrupted(**settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure_data", interrupted)
    monkeypatch.setattr(
        bench, "measure_environments", lambda *_, **__: {"rows": [], "failures": {}}
    )
    monkeypatch.setitem(bench.BENCHES, "latency", lambda cfg: lambda: {"groups": []})
    monkeypatch.setitem(bench.BENCHES, "train", lambda cfg: lambda: {"rows": []})
    monkeypatch.setattr(bench, "tables", lambda results: "")
    with pytest.raises(KeyboardInterrupt):
        run(tiny(tmp_path))
    kept = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert {"latency", "train", "env"} <= set(kept)
    assert "data" not in kept


def test_the_committed_ratios_are_of_what_is_measured_by_default():
    kept = bench.baseline.load(bench._kept_in("committed"))["ratios"]
    cfg = compose_config("bench", [])
    rows = {f"train: {form}, windows/s" for form in cfg.train.forms}
    for group in read_groups(plain(cfg.lineup)["groups"]):
        name = bench._group_name(group, cfg)
        rows |= {f"{name}: {row.name}, per action" for row in group.rows}
        rows |= {f"{name}: {row.name}, equal calls" for row in group.rows}
        rows |= {f"{name}: one call, {row.how}, equal calls" for row in group.rows}
    names = [name for name in kept if not name.startswith(("env: ", "data: "))]
    assert set(names) <= rows
    assert names
    assert bench._kept_in("mine.json").name == "mine.json"


def test_what_is_measured_may_stand_as_a_word(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cadence", "everything"])
    with pytest.raises(SystemExit) as end:
        bench.main()
    assert end.value.code == 1
    assert "what is 'everything'" in capsys.readouterr().err


def test_a_panel_shows_each_row_once(everything, tmp_path):
    shown = panels(everything[1])
    assert len(shown) == 4
    group = everything[1]["latency"]["groups"][0]
    assert [mark.name for mark in shown[0].marks] == [row["name"] for row in group["rows"]]
    assert [mark.floor for mark in shown[0].marks] == [row["floor_ms"] for row in group["rows"]]
    assert shown[0].marks[0] == Mark(
        "peer, 2 calls",
        group["rows"][0]["p50_ms"],
        is_peer=True,
        worst=group["rows"][0]["p99_ms"],
        floor=group["rows"][0]["floor_ms"],
        note="",
    )
    assert all(isinstance(panel, Panel) for panel in shown)
    with pytest.raises(ValueError, match="nothing was measured"):
        draw({}, tmp_path / "none.png")
