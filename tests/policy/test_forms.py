"""Forms of a step: the same gradients, chosen by trying, recorded, and resumed bit for bit."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data.store import EpisodeStore
from data.types import Contract, Field
from policy import precision, train
from policy.checkpoint import load, load_trainer
from policy.entry import compose_config
from policy.forms import Captured, learner
from policy.nets.compiled import CompileError
from policy.precision import pick_precision
from policy.ranks import Ranks
from policy.train_run import Run, prepare
from policy.trainer import Trainer

SMALL = ["batch_size=32", "device=cpu", "threads=1"]
UNET, MLP = ["net.channels=[16,32]"], ["net=mlp"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("forms") / "store.zarr"
    contract = Contract(
        observation={"state": Field(shape=(3,))}, action=Field(shape=(2,)), control_dt=0.1
    )
    rng = np.random.default_rng(0)
    made = EpisodeStore.create(path, contract)
    for _ in range(4):
        walk = rng.normal(size=(30, 5)).cumsum(axis=0).astype(np.float32)
        made.append({"state": walk[:, :3], "action": walk[:, 3:]})
    return path


def prepared(store: Path, *settings: str, device: str = "cpu", net: Sequence[str] = UNET) -> Run:
    given = [f"store.path={store}", *SMALL, *net, f"device={device}", *settings]
    return prepare(compose_config("train", given), EpisodeStore.open(store), Path())


def gradients(run: Run, form: str) -> list[torch.Tensor]:
    """Of the second step, whose weights are no zeros any more."""
    run.trainer.use(form)
    for step in range(2):
        run.trainer.step(run.dataset.batch(torch.arange(32) + step), 1.0)
    return [p.grad.clone() for p in run.trainer.policy.parameters() if p.grad is not None]


def assert_same_gradients(run: Run, other: Run, form: str) -> None:
    for one, two in zip(gradients(run, "plain"), gradients(other, form), strict=True):
        assert float((one - two).abs().max()) <= 1e-3 * float(one.abs().max()) + 1e-5


def test_fast_gives_the_gradients_of_plain(store):
    fp32 = "precision=fp32"
    assert_same_gradients(prepared(store, fp32), prepared(store, fp32), "fast")


def test_compiled_gives_the_gradients_of_plain(store, monkeypatch):
    # How it is compiled is not ours, and takes long.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    fp32 = "precision=fp32"
    assert_same_gradients(prepared(store, fp32), prepared(store, fp32), "compiled")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_captured_step_gives_the_gradients_of_plain(store, accumulate):
    settings = ["precision=fp32", f"accumulate={accumulate}"]
    plain, graph = (prepared(store, *settings, device="cuda") for _ in range(2))
    assert_same_gradients(plain, graph, "graph")


def test_another_form_leaves_what_is_evaluated_and_saved_alone(store):
    run = prepared(store, "precision=fp32")
    names = list(run.trainer.policy.state_dict())
    net = run.trainer.policy.net
    run.trainer.use("fast")
    run.trainer.step(run.dataset.batch(torch.arange(32)), 1.0)
    assert list(run.trainer.policy.state_dict()) == names
    assert run.trainer.policy.net is net
    assert run.trainer._learner.net is not net


def test_what_there_is_not_is_refused(store):
    unet, mlp = prepared(store, "precision=fp32"), prepared(store, "precision=fp32", net=MLP)
    with pytest.raises(ValueError, match="form is 'quick', choose one of auto, plain, fast"):
        learner(unet.trainer.policy, "quick")
    with pytest.raises(ValueError, match=r"ResidualMLP on cpu has none, give form=plain or auto"):
        learner(mlp.trainer.policy, "fast")
    with pytest.raises(ValueError, match="form=graph is a CUDA graph, the device is cpu"):
        prepared(store, "precision=fp32", "form=graph")
    with pytest.raises(ValueError, match="form is 'quick', choose one of auto, plain"):
        prepared(store, "precision=fp32", "form=quick")
    with pytest.raises(ValueError, match="precision is 'fp64', choose one of auto, fp32, bf16"):
        prepared(store, "precision=fp64")
    with pytest.raises(ValueError, match="form=fast computes in fp32: give precision=fp32 or auto"):
        prepared(store, "precision=bf16", "form=fast")


def test_a_step_that_cannot_be_captured_is_refused_with_its_reason(store, monkeypatch):
    def broken() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "Stream", broken)
    run = prepared(store, "precision=fp32")
    lesson = run.trainer._lesson(run.dataset.batch(torch.arange(32)))
    with pytest.raises(ValueError, match=r"cannot be captured \(operation not permitted"):
        Captured(run.trainer._forward_and_backward, lesson, [])


def test_a_form_that_fails_when_it_is_tried_is_left_out(store, monkeypatch, capsys):
    def seconds(trainer, batch, *, form, autocast):
        if form == "fast":
            raise ValueError("it cannot be captured")
        return 1.0

    monkeypatch.setattr(precision, "_seconds_per_step", seconds)
    assert prepared(store).cfg.form == "plain"
    assert "form=fast in fp32 is left out: it cannot be captured" in capsys.readouterr().out
    with pytest.raises(ValueError, match="it cannot be captured"):
        prepared(store, "form=fast")


def test_nothing_is_tried_where_a_precision_is_given(store, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a step was tried"))
    run = prepared(store, "precision=bf16")
    assert (run.cfg.precision, run.cfg.form) == ("bf16", "plain")
    assert run.trainer.autocast


def costing(seconds: dict[tuple[str, bool], float]):
    """Trials that take given times; others are not to be made."""
    return lambda trainer, batch, *, form, autocast: seconds[form, autocast]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((3.0, 2.0, 1.0), ("fp32", "fast")),
        ((3.0, 1.0, 2.0), ("bf16", "plain")),
        ((1.0, 2.0, 3.0), ("fp32", "plain")),
    ],
)
def test_the_fastest_is_chosen_and_recorded(store, monkeypatch, times, expected):
    tried = dict(zip([("plain", False), ("plain", True), ("fast", False)], times, strict=True))
    monkeypatch.setattr(precision, "_seconds_per_step", costing(tried))
    run = prepared(store)
    assert (run.cfg.precision, run.cfg.form) == expected
    assert (run.trainer.autocast, run.trainer.form) == (expected[0] == "bf16", expected[1])


def test_a_form_may_be_given_and_its_precision_tried(store, monkeypatch):
    tried = {("plain", False): 2.0, ("plain", True): 1.0}
    monkeypatch.setattr(precision, "_seconds_per_step", costing(tried))
    run = prepared(store, "form=plain")
    assert (run.cfg.precision, run.cfg.form) == ("bf16", "plain")


def test_trying_leaves_the_trainer_as_it_was(store):
    run = prepared(store, "precision=fp32")
    before = {k: v.clone() for k, v in run.trainer.policy.state_dict().items()}
    choice = pick_precision("auto", "auto", run.trainer, run.dataset, 32)
    assert "in fp32 fast" in choice.why
    assert "in bf16 plain" in choice.why
    assert run.trainer.step_count == 0
    assert all(torch.equal(before[k], v) for k, v in run.trainer.policy.state_dict().items())
    assert not run.trainer.optimizer.state


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise CompileError("there is no compiler")

    monkeypatch.setattr("policy.nets.unet1d_training.prepare", broken)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_is_plain_unless_fast_is_asked_for(store, capsys):
    assert prepared(store).cfg.form == "plain"
    assert "form=fast is left out: there is no compiler" in capsys.readouterr().out
    for given in ("precision=fp32", "precision=auto"):
        with pytest.raises(ValueError, match="form=fast cannot be had here: there is no compiler"):
            prepared(store, given, "form=fast")


def test_what_another_process_cannot_have_is_not_tried(store, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(Ranks, "any", lambda _, flag: told.append(flag) or True)
    assert prepared(store).cfg.form == "plain"
    assert told == [False]
    assert "form=fast is left out: another process cannot have it" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["fast", "graph"])
@pytest.mark.usefixtures("no_compiler")
def test_a_run_whose_form_is_not_to_be_had_here_goes_on_as_plain(store, tmp_path, capsys, form):
    run = prepared(store, "precision=fp32")
    run.out, run.cfg.form = tmp_path, form
    run.save()
    resumed = train.resume(tmp_path)
    assert (resumed.trainer.form, resumed.cfg.form) == ("plain", "plain")
    assert "note: going on with form=plain, and not bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["plain", "fast"])
def test_a_resumed_run_goes_on_in_its_form_bit_for_bit(store, tmp_path, form):
    out = tmp_path / "run"
    settings = ["precision=fp32", f"form={form}", "steps=12", "save_every=5", "warmup_steps=2"]
    given = [f"store.path={store}", f"out={out}", *SMALL, *UNET, *settings]
    train.run(compose_config("train", given))
    loaded = load(out)
    assert loaded.config["form"] == form
    weights, state = loaded.policy_state, load_trainer(loaded)
    shutil.rmtree(out / "checkpoints" / "step_00000012")
    run = train.resume(out)
    assert (run.trainer.step_count, run.trainer.form) == (10, form)
    train.fit(run)
    for name, values in run.trainer.ema.module.state_dict().items():
        assert torch.equal(values, weights[name])
    assert str(run.trainer.state()["optimizer"]) == str(state["optimizer"])


def test_runs_of_older_programs_go_on_as_plain(store, tmp_path):
    cfg = compose_config("train", [f"store.path={store}", *SMALL, *UNET, "precision=fp32"])
    OmegaConf.set_struct(cfg, False)
    for name in ("form", "accumulate", "profile"):
        del cfg[name]
    run = prepare(cfg, EpisodeStore.open(store), tmp_path)
    assert run.cfg.form == "plain"
