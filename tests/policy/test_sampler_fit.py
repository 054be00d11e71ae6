"""What was fitted comes back as it was; what samplers cannot start from is refused by name."""

import pytest
import torch
from safetensors.torch import save_file

from policy.build import chunk_space
from policy.checkpoint import CheckpointError, load, resolve
from policy.checkpoint_doctor import examine_checkpoint
from policy.sampler_fit import FILE, SamplerFit, load_fit, save_fit

TP, DA = 4, 2
GRID = torch.tensor([20.0, 1.0, 0.0])
ANCHORS = torch.arange(3.0 * TP * DA).view(3, TP, DA)


def test_what_was_saved_is_loaded(tmp_path):
    save_fit(tmp_path, SamplerFit({2: GRID}, ANCHORS))
    found = load_fit(tmp_path, chunk_shape=(TP, DA))
    assert list(found.grids) == [2]
    assert torch.equal(found.grids[2], GRID)
    assert found.anchors is not None
    assert torch.equal(found.anchors, ANCHORS)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("anchors", ANCHORS[..., :1], r"anchors has shape \[3, 4, 1\], it must have \[M, 4, 2\]"),
        ("anchors", ANCHORS[:, 1:], r"shape \[3, 3, 2\]"),
        ("anchors", ANCHORS[0], r"shape \[4, 2\]"),
        ("anchors", ANCHORS[:0], r"shape \[0, 4, 2\]"),
        ("anchors", ANCHORS.double(), r"anchors is of torch\.float64"),
        ("anchors", ANCHORS.long(), r"anchors is of torch\.int64"),
        ("anchors", ANCHORS * torch.inf, r"anchors holds \d+ numbers such as nan"),
        ("grid_2", torch.tensor([20.0, 5.0, 1.0, 0.0]), r"grid_2 has shape \[4\], .* \[3\]"),
        ("grid_2", GRID[:, None], r"grid_2 has shape \[3, 1\]"),
        ("grid_2", GRID[:0], r"grid_2 has shape \[0\]"),
        ("grid_0", GRID[-1:], r"grid_0 has shape \[1\]"),
        ("grid_2", GRID.half(), r"grid_2 is of torch\.float16"),
        ("grid_2", torch.tensor([torch.inf, 1.0, 0.0]), r"grid_2 holds 1 numbers such as inf"),
        ("grid_2", torch.tensor([1.0, 20.0, 0.0]), r"grid_2: the grid is \[1\.0, 20\.0, 0\.0\]"),
        ("grid_2", GRID + 1, r"must decrease and end in 0"),
        ("grid_two", GRID, r"'two'"),
    ],
)
def test_what_samplers_cannot_start_from_is_refused(tmp_path, name, tensor, message):
    save_file({name: tensor.contiguous()}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_fit(tmp_path, chunk_shape=(TP, DA))
    assert caught.value.code == "C004"
    assert str(tmp_path / FILE) in caught.value.problem
    assert "cadence fit" in caught.value.fix


@pytest.fixture
def checkpoint(pillar_checkpoint, tmp_path):
    """A copy that a test may write into."""
    place = tmp_path / "step_00000000"
    place.mkdir()
    for file in resolve(pillar_checkpoint).iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def test_a_checkpoint_with_anchors_of_another_size_is_found_out(checkpoint):
    loaded = load(checkpoint)
    shape = loaded.horizons.pred, loaded.contract.action.size
    save_fit(checkpoint, SamplerFit({2: GRID}, torch.zeros(3, *shape)))
    assert examine_checkpoint(checkpoint) == []
    chunk_space(loaded)
    save_fit(checkpoint, SamplerFit({2: GRID}, torch.zeros(3, shape[0], 1)))
    (finding,) = examine_checkpoint(checkpoint)
    assert (finding.code, finding.severity) == ("C004", "error")
    assert "anchors has shape" in finding.message
    with pytest.raises(CheckpointError, match="anchors has shape"):
        chunk_space(loaded)
