"""A published policy predicts here what it predicts there, and its file runs no code."""

import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from data.types import Horizons
from policy import entry
from policy.agent import Agent
from policy.build import from_checkpoint
from policy.checkpoint import load
from policy.checkpoint_doctor import examine_checkpoint
from policy.diffusion.schedule import cosine_vp_sigmas
from policy.diffusion_policy_layout import from_diffusion_policy
from policy.entry import compose_config
from policy.foreign_checkpoint import load_foreign, plain
from policy.import_policy import check_config, run
from policy.nets.noise_embed import NoiseEmbed
from policy.nets.unet1d import UNet1d

DO, DA, TO, TP = 5, 2, 2, 16
CHANNELS, KERNEL, EMBED = (8, 16, 24), 5, 8


# The published network, written from its description in the paper: one level per chunk, one FiLM
# layer on [level, condition] with a raw scale, Mish throughout. Names are those of its weights.


class Conv(nn.Module):
    def __init__(self, size_in, size_out):
        super().__init__()
        conv = nn.Conv1d(size_in, size_out, KERNEL, padding=KERNEL // 2)
        self.block = nn.Sequential(conv, nn.GroupNorm(8, size_out), nn.Mish())

    def forward(self, h):
        return self.block(h)


class Residual(nn.Module):
    def __init__(self, size_in, size_out, n_features):
        super().__init__()
        self.blocks = nn.ModuleList([Conv(size_in, size_out), Conv(size_out, size_out)])
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(n_features, 2 * size_out))
        if size_in != size_out:
            self.residual_conv = nn.Conv1d(size_in, size_out, 1)

    def forward(self, h, features):
        scale, shift = self.cond_encoder(features)[..., None].chunk(2, dim=1)
        skip = self.residual_conv(h) if hasattr(self, "residual_conv") else h
        return self.blocks[1](scale * self.blocks[0](h) + shift) + skip


class Resample(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, h):
        return self.conv(h)


class Reference(nn.Module):
    def __init__(self, size=DA, cond_size=TO * DO):
        super().__init__()
        features = EMBED + cond_size
        a, b, c = CHANNELS

        def level(size_in, size_out, *resample):
            first = Residual(size_in, size_out, features)
            second = Residual(size_out, size_out, features)
            return nn.ModuleList([first, second, *map(Resample, resample)])

        def down(n):
            return nn.Conv1d(n, n, 3, stride=2, padding=1)

        def up(n):
            return nn.ConvTranspose1d(n, n, 4, stride=2, padding=1)

        self.diffusion_step_encoder = nn.Sequential(
            nn.Identity(), nn.Linear(EMBED, 4 * EMBED), nn.Mish(), nn.Linear(4 * EMBED, EMBED)
        )
        self.down_modules = nn.ModuleList(
            [level(size, a, down(a)), level(a, b, down(b)), level(b, c)]
        )
        self.mid_modules = nn.ModuleList([Residual(c, c, features), Residual(c, c, features)])
        self.up_modules = nn.ModuleList([level(2 * c, b, up(b)), level(2 * b, a, up(a))])
        self.final_conv = nn.Sequential(Conv(a, a), nn.Conv1d(a, size, 1))

    def forward(self, x, k, cond):
        half = EMBED // 2
        rates = 10_000 ** (-torch.arange(half, dtype=x.dtype) / (half - 1))
        angles = torch.full((len(x), 1), k, dtype=x.dtype) * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        features = torch.cat([self.diffusion_step_encoder(waves), cond], dim=1)
        h, skips = x.transpose(1, 2), []
        for level in self.down_modules:
            first, second, *resample = level.children()
            h = second(first(h, features), features)
            skips.append(h)
            h = resample[0](h) if resample else h
        for block in self.mid_modules:
            h = block(h, features)
        for level in self.up_modules:
            first, second, resample = level.children()
            h = torch.cat([h, skips.pop()], dim=1)
            h = resample(second(first(h, features), features))
        return self.final_conv(h).transpose(1, 2)


SCALE = {"obs": torch.linspace(0.2, 3.0, DO), "action": torch.tensor([0.01, 4.0])}
OFFSET = {"obs": torch.linspace(-1.0, 0.5, DO), "action": torch.tensor([-0.7, 0.1])}

CONFIG = {
    "_target_": "somewhere.workspace.Workspace",
    "policy": {
        "horizon": TP,
        "n_obs_steps": TO,
        "oa_step_convention": True,
        "pred_action_steps_only": False,
        "noise_scheduler": {
            "prediction_type": "epsilon",
            "beta_schedule": "squaredcos_cap_v2",
            "num_train_timesteps": 100,
            "beta_end": 0.02,
        },
        "model": {"n_groups": 8, "down_dims": list(CHANNELS)},
    },
}


def published(net):
    """State dict of a policy around the network."""
    state = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    for field in ("obs", "action"):
        prefix = f"normalizer.params_dict.{field}"
        state[f"{prefix}.scale"], state[f"{prefix}.offset"] = SCALE[field], OFFSET[field]
        state[f"{prefix}.input_stats.min"] = torch.zeros(1)
    state["mask_generator._dummy_variable"] = torch.zeros(0)
    state["_dummy_variable"] = torch.zeros(0)
    return state


def write(file, state, **changes):
    """A checkpoint file; `model` holds other weights than the averaged ones."""
    raw = {name: tensor + 1 for name, tensor in state.items()}
    content = {
        "cfg": OmegaConf.create(CONFIG),
        "state_dicts": {"model": raw, "ema_model": state, "optimizer": {"state": {0: raw}}},
        "pickles": {"epoch": pickle.dumps(550)},
    }
    torch.save({**content, **changes}, file)
    return file


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    net = Reference()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return net.eval()


@pytest.fixture
def file(reference, tmp_path):
    return write(tmp_path / "latest.ckpt", published(reference))


def settings(file, *overrides):
    out = file.parent / "out"
    quoted = f"src='{file}'"
    return compose_config("import_policy", [quoted, "control_dt=0.1", f"out={out}", *overrides])


def imported(file, *overrides):
    return load(run(settings(file, *overrides)))


@torch.no_grad()
def test_prediction_is_that_of_the_published_network(reference, file):
    """In float64; the index of a level is exact but for the last one, whose beta is capped."""
    policy = from_checkpoint(imported(file)).double()
    net = Reference().double()
    net.load_state_dict(reference.state_dict())
    x0, eps = torch.randn(2, 3, TP, DA, dtype=torch.float64)
    cond = torch.randn(3, TO * DO, dtype=torch.float64)
    sigmas = cosine_vp_sigmas(100)
    for k in (0, 1, 10, 49, 80, 96, 98):
        sigma = sigmas[k]
        alpha_bar = 1 / (1 + sigma**2)
        noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
        predicted = net(noisy, k, cond)
        assert predicted.std() > 0.1
        expected = (noisy - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
        got = policy(x0 + sigma * eps, sigma.expand(3, TP), cond)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_single_precision_predicts_the_same(reference, file):
    policy = from_checkpoint(imported(file))
    x0, eps = torch.randn(2, 3, TP, DA)
    cond = torch.randn(3, TO * DO)
    for k in (5, 30, 60):
        sigma = cosine_vp_sigmas(100)[k].float()
        noisy = (x0 + sigma * eps) * (1 + sigma**2).rsqrt()
        expected = x0 + sigma * (eps - reference(noisy, k, cond))
        got = policy(x0 + sigma * eps, sigma.expand(3, TP), cond)
        # The index is an arc cosine, of which float32 keeps about 1e-4.
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_scaling_is_that_of_the_published_normaliser(file):
    policy = from_checkpoint(imported(file))
    state, action = 3 * torch.randn(4, TO, DO), 50 * torch.randn(4, TP, DA)
    cond = policy.encode({"state": state})
    torch.testing.assert_close(cond, (state * SCALE["obs"] + OFFSET["obs"]).flatten(1))
    chunk = policy.chunk(action)
    torch.testing.assert_close(chunk, action * SCALE["action"] + OFFSET["action"])
    torch.testing.assert_close(policy.actions(chunk), action, rtol=1e-5, atol=1e-4)


def test_checkpoint_is_healthy_and_says_what_it_is(file, capsys):
    loaded = imported(file, "unit=px", "task=push")
    assert examine_checkpoint(loaded.path) == []
    assert loaded.contract.horizons == Horizons(obs=TO, pred=TP, action=8, past=TO - 1)
    assert loaded.contract.observation["state"].shape == (DO,)
    assert loaded.contract.action.unit == "px"
    assert loaded.contract.control_dt == 0.1
    assert loaded.weights == "ema"
    assert "does not say" not in capsys.readouterr().out


def test_chunk_begins_in_the_past_as_the_file_says(reference, tmp_path):
    cfg = OmegaConf.create(CONFIG)
    cfg.policy.oa_step_convention = False
    file = write(tmp_path / "a.ckpt", published(reference), cfg=cfg)
    assert imported(file).horizons.past == TO


GRID, FIRST, LAST = (
    f"sampler.{key}=0.0252" for key in ("grid.sigma_min", "first.grid.sigma_min", "sigma_min")
)


def make_sampler(*overrides):
    overrides = [*overrides, "env=pillar", "checkpoint=none"]
    return instantiate(compose_config("evaluate", overrides).sampler)


@pytest.mark.parametrize(
    ("overrides", "action_horizon"),
    [
        (["sampler=ddpm_96"], 8),
        (["sampler=ddim_8", GRID], 8),
        (["sampler=rti", FIRST, LAST], 8),
        (["sampler=rtc", FIRST, LAST], 8),
        (["sampler=streaming", FIRST, LAST], 7),
    ],
)
def test_imported_policy_can_be_sampled(file, overrides, action_horizon):
    loaded = imported(file)
    agent = Agent.load(loaded.path, make_sampler(*overrides), rows=2, action_horizon=action_horizon)
    streams = agent.start([0, 1])
    for _ in range(2):
        chunk = agent.chunk(streams, {"state": np.zeros((2, TO, DO), np.float32)})
        assert chunk.shape == (2, TP - TO + 1, DA)
        assert np.isfinite(chunk).all()
        agent.shift(streams, agent.horizons.action)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sampler=ddim_8"],
            r"sigma 0\.01, .* trained at 0\.0251\d* .*: give grid\.sigma_min=0\.0251",
        ),
        (["sampler=rti", FIRST], r"sigma 0\.01, .* give sigma_min=0\.0251"),
        (["sampler=streaming", FIRST, LAST], "15 actions are not decided and 8 are executed"),
    ],
)
def test_sampler_that_asks_for_untrained_levels_is_refused(file, overrides, message):
    loaded = imported(file)
    with pytest.raises(ValueError, match=message):
        Agent.load(loaded.path, make_sampler(*overrides))


class Evil:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, exec])
def test_code_in_the_file_is_not_run(reference, tmp_path, function):
    marker = tmp_path / "marker"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w').close()"
    evil = Evil(function, argument)
    file = write(tmp_path / "evil.ckpt", published(reference), cfg=evil, more=[evil])
    assert imported(file).horizons.obs == TO
    assert not marker.exists()
    torch.load(file, weights_only=False)  # the control: an ordinary load does run it
    assert marker.exists()


def test_code_in_place_of_weights_is_not_run(reference, tmp_path):
    marker = tmp_path / "marker"
    state = {**published(reference), "_dummy_variable": Evil(os.system, f"touch {marker}")}
    content = {"state_dicts": {"ema_model": state}}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"ema_model, \['_dummy_variable'\] are no tensors"):
        load_foreign(tmp_path / "evil.ckpt", weights="ema_model")
    assert not marker.exists()


def test_nothing_is_imported_for_a_name_in_the_file(tmp_path):
    stream = b"\x80\x02cthis\ns\nq\x00)Rq\x01."
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", stream)
    with pytest.raises(ValueError, match="it must hold state_dicts"):
        load_foreign(tmp_path / "a.ckpt", weights="ema_model")
    assert "this" not in sys.modules


def test_configuration_of_unknown_classes_is_read_as_plain_values(file):
    config = load_foreign(file, weights="ema_model").config
    assert config == CONFIG


def test_values_of_no_plain_kind_are_left_out():
    assert plain({"a": [1, (2.5, "b")], 3: {4}, "c": None}) == {
        "a": [1, [2.5, "b"]],
        "3": None,
        "c": None,
    }


def test_tensors_of_any_kind_and_view_are_read(tmp_path):
    base = torch.arange(24.0)
    state = {
        "view": base.view(4, 6).T[1:3],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "parameter": nn.Parameter(torch.ones(2, 2)),
        "empty": torch.zeros(0),
    }
    torch.save({"state_dicts": {"ema_model": state}}, tmp_path / "a.ckpt")
    found = load_foreign(tmp_path / "a.ckpt", weights="ema_model").tensors
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def refuse(file, match, *overrides):
    cfg = settings(file, *overrides)
    with pytest.raises(ValueError, match=match):
        run(cfg)
    assert not (file.parent / "out").exists()


def test_missing_file_is_named(tmp_path):
    refuse(tmp_path / "none.ckpt", r"none\.ckpt: there is no such file")


def test_file_of_another_format_is_refused(tmp_path):
    file = tmp_path / "a.ckpt"
    file.write_bytes(pickle.dumps({"state_dicts": {}}))
    refuse(file, r"a\.ckpt is no whole zip file")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/readme.txt", "text")
    refuse(file, "none that torch.save wrote")
    with zipfile.ZipFile(file, "w") as archive:  # as TorchScript writes it
        archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("a/constants.pkl", pickle.dumps((), protocol=2))
    refuse(file, "none that torch.save wrote")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02nonsense")
    refuse(file, "its pickle cannot be read")


def test_truncated_file_is_refused(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refuse(file, "no whole zip file")


def rewritten(file, change):
    """The archive with each record (name, content) changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    file.write_bytes(out.getvalue())


def test_records_that_contradict_the_pickle_are_refused(reference, file):
    rewritten(file, lambda name, content: content[:-4] if "/data/" in name else content)
    refuse(file, "is damaged: .* bytes, .* numbers of torch.float32 need")
    write(file, published(reference))
    rewritten(file, lambda name, content: b"big" if name.endswith("byteorder") else content)
    refuse(file, "big-endian")


def test_file_without_the_state_dicts_is_refused(tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}}, file)
    refuse(file, r"holds \['state_dict'\], it must hold state_dicts")
    torch.save({"state_dicts": {"model": {}}}, file)
    refuse(file, r"lacks the weights 'ema_model', it has \['model'\]")


def test_unknown_and_missing_names_are_listed(reference, tmp_path):
    state = published(reference)
    file = write(tmp_path / "a.ckpt", {**state, "obs_encoder.net.weight": torch.zeros(1)})
    refuse(file, r"1 names are not those .*: obs_encoder\.net\.weight")
    del state["model.mid_modules.1.blocks.0.block.1.bias"]
    refuse(
        write(file, state),
        r"1 weights are missing: model\.mid_modules\.1\.blocks\.0\.block\.1\.bias",
    )
    refuse(write(file, {"backbone.weight": torch.zeros(1)}), "no U-Net of Diffusion Policy")


def test_policies_of_other_kinds_are_refused(reference, tmp_path):
    file = tmp_path / "a.ckpt"
    refuse(write(file, published(Reference(size=DA + DO, cond_size=0))), "by inpainting")
    local = {"model.local_cond_encoder.0.blocks.0.block.0.weight": torch.zeros(1)}
    refuse(write(file, {**published(reference), **local}), "per position")
    biased = {
        name: tensor[: len(tensor) // 2] if "cond_encoder" in name else tensor
        for name, tensor in published(reference).items()
    }
    refuse(write(file, biased), "cond_predict_scale=False is not supported")


def test_weights_that_contradict_each_other_are_refused(reference, tmp_path):
    name = "model.mid_modules.0.blocks.0.block.0.weight"
    state = published(reference)
    file = write(tmp_path / "a.ckpt", {**state, name: torch.zeros(3, 3, 5)})
    refuse(file, "the weights contradict each other: .*middle.first.first.0.weight")
    refuse(write(file, {**state, name: state[name] * float("nan")}), "not finite: middle.first")
    refuse(write(file, {**state, "model.final_conv.1.weight": torch.zeros(3)}), "3 dimensions")
    scale = {"normalizer.params_dict.obs.scale": torch.zeros(DO)}
    refuse(write(file, {**state, **scale}), "normaliser of 'obs' .* positive scales")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy.noise_scheduler.prediction_type", "sample"),
        ("policy.noise_scheduler.beta_schedule", "linear"),
        ("policy.noise_scheduler.num_train_timesteps", 50),
        ("policy.model.n_groups", 4),
        ("policy.pred_action_steps_only", True),
    ],
)
def test_configuration_of_another_policy_is_refused(key, value):
    cfg = OmegaConf.create(CONFIG)
    OmegaConf.update(cfg, key, value)
    with pytest.raises(ValueError, match=f"{key} is {value}, only"):
        check_config(entry.plain(cfg))


def test_what_the_file_leaves_unsaid_is_reported(reference, tmp_path, capsys):
    imported(write(tmp_path / "a.ckpt", published(reference), cfg=None))
    assert "policy.noise_scheduler.prediction_type=epsilon" in capsys.readouterr().out


def test_settings_that_contradict_the_file_are_refused(file):
    refuse(file, "obs_horizon is 3, it must divide the condition of 10", "obs_horizon=3")
    refuse(file, "has 10 elements each, but the normaliser has 5", "obs_horizon=1")
    refuse(file, "trained with 16: give pred_horizon=16", "pred_horizon=12")
    refuse(file, "horizons.action is 16", "action_horizon=16")
    refuse(file, "control_dt is 'fast'", "control_dt=fast")
    refuse(file, "obs_horizon is 'x'", "obs_horizon=x")


def test_one_scale_for_all_elements_needs_the_observed_steps(reference):
    one = {
        f"normalizer.params_dict.{field}.{kind}": torch.ones(1)
        for field in ("obs", "action")
        for kind in ("scale", "offset")
    }
    state = {**published(reference), **one}
    with pytest.raises(ValueError, match="give obs_horizon="):
        from_diffusion_policy(state)
    found = from_diffusion_policy(state, obs_horizon=TO)
    assert (found.obs_size, found.obs_horizon) == (DO, TO)
    assert found.normalizer["state/center"].tolist() == [-1.0] * DO


def test_checkpoints_that_are_there_are_not_overwritten(file):
    cfg = settings(file)
    run(cfg)
    with pytest.raises(ValueError, match="holds checkpoints already"):
        run(cfg)


def test_name_with_an_equals_sign_can_be_given(reference, tmp_path):
    state = published(reference)
    assert imported(write(tmp_path / "epoch=0500-test_mean_score=0.9.ckpt", state)).step == 0


def test_activations():
    sizes = {"action_size": 2, "cond_size": 3, "pred_horizon": 4, "channels": (8,)}
    default, mish = UNet1d(**sizes), UNet1d(**sizes, activation="mish")
    assert default.state_dict().keys() == mish.state_dict().keys()
    with pytest.raises(ValueError, match="activation is 'relu', choose one of silu, mish"):
        UNet1d(**sizes, activation="relu")
    embed = NoiseEmbed(4, activation="mish")
    waves = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    weights = embed.state_dict()
    hidden = F.mish(F.linear(waves, weights["mlp.0.weight"], weights["mlp.0.bias"]))
    expected = F.linear(hidden, weights["mlp.2.weight"], weights["mlp.2.bias"])
    torch.testing.assert_close(embed(torch.zeros(1, 1))[0], expected)
