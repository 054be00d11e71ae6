"""Normalisation: closed forms, exact inversion, strict statistics."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.normalize import Normalizer
from data.types import Contract, ContractError, Field


def contract(**fields: Field) -> Contract:
    action = fields.pop("action", Field((1,), normalization="identity"))
    return Contract(fields or {"state": Field((1,))}, action, 0.1)


def fitted(field: Field, values: np.ndarray) -> Normalizer:
    return Normalizer.fit(
        contract(state=field), {"state": values, "action": np.zeros((len(values), 1))}
    )


DATA = np.array([[0.0, 5.0], [10.0, 5.0], [2.0, 5.0]], np.float32)


def test_limits_map_the_data_to_minus_one_and_one():
    scaled = fitted(Field((2,)), DATA).normalize("state", torch.from_numpy(DATA))
    assert scaled.tolist() == [[-1, 0], [1, 0], [pytest.approx(-0.6), 0]]


def test_limits_come_from_the_data_and_not_from_the_contract():
    field = Field((2,), low=(-100.0, -100.0), high=(100.0, 100.0))
    assert fitted(field, DATA).normalize("state", torch.tensor([10.0, 5.0])).tolist() == [1, 0]


def test_gaussian_has_mean_zero_and_deviation_one():
    normalizer = fitted(Field((2,), normalization="gaussian"), DATA)
    scaled = normalizer.normalize("state", torch.from_numpy(DATA))
    assert scaled[:, 0].mean() == pytest.approx(0, abs=1e-6)
    assert scaled[:, 0].std(correction=0) == pytest.approx(1, abs=1e-6)
    assert scaled[:, 1].tolist() == [0, 0, 0]


def test_identity_changes_nothing():
    values = torch.from_numpy(DATA)
    assert torch.equal(
        fitted(Field((2,), normalization="identity"), DATA).normalize("state", values), values
    )


@pytest.mark.parametrize("normalization", ["limits", "gaussian", "identity"])
def test_discrete_elements_are_scaled_by_limits(normalization):
    values = np.array([[0.0, 1.0], [0.0, 2.0], [1.0, 6.0]], np.float32)
    field = Field((2,), discrete=(0,), normalization=normalization)
    scaled = fitted(field, values).normalize("state", torch.from_numpy(values))
    assert scaled[:, 0].tolist() == [-1, -1, 1]


def test_a_constant_is_not_blown_up():
    values = np.float32(1000) + np.array([[0.0], [1e-4], [-1e-4]], np.float32)
    scaled = fitted(Field((1,)), values).normalize("state", torch.tensor([[1000.5]]))
    assert scaled.item() == pytest.approx(0.5, abs=1e-3)


def test_angles_of_observations_become_cosine_and_sine_at_the_end():
    field = Field((3,), angles=(1,))
    values = np.array([[-2.0, 0.1, 4.0], [2.0, 6.0, 8.0]], np.float32)
    normalizer = fitted(field, values)
    assert normalizer.size("state") == 4
    features = normalizer.normalize("state", torch.tensor([2.0, 2.5, 6.0]))
    assert features.tolist() == pytest.approx([1, 0, np.cos(2.5), np.sin(2.5)], abs=1e-6)
    # Just before and just after a whole turn is the same to a network.
    turn = normalizer.normalize("state", torch.tensor([2.0, 2.5 + 2 * np.pi, 6.0]))
    assert torch.allclose(features, turn, atol=1e-5)


def test_angles_of_actions_stay_numbers():
    normalizer = Normalizer.fit(
        contract(action=Field((2,), angles=(1,))), {"state": np.zeros((3, 1)), "action": DATA}
    )
    assert normalizer.size("action") == 2
    assert normalizer.normalize("action", torch.tensor([10.0, 6.0])).tolist() == [1, 1]


def test_images_go_from_bytes_to_plus_minus_one_and_back():
    normalizer = Normalizer.fit(
        contract(camera=Field((16, 16, 1), dtype="uint8")), {"action": np.zeros((1, 1))}
    )
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    scaled = normalizer.normalize("camera", image)
    assert (scaled.min(), scaled.max(), scaled.shape) == (-1, 1, image.shape)
    assert torch.equal(normalizer.unnormalize("camera", scaled), image)
    assert normalizer.size("camera") == 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_picture_that_is_not_in_bytes_is_refused(dtype):
    normalizer = Normalizer.fit(
        contract(camera=Field((2, 2, 1), dtype="uint8")), {"action": np.zeros((1, 1))}
    )
    with pytest.raises(ValueError, match=f"'camera' is {dtype}, the contract says uint8"):
        normalizer.normalize("camera", torch.zeros(1, 2, 2, 1, dtype=dtype))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    normalization=st.sampled_from(["limits", "gaussian", "identity"]),
    shape=st.sampled_from([(), (1,), (4,), (2, 3)]),
    offset=st.floats(-100, 100),
    leading=st.sampled_from([(), (5,), (2, 3)]),
    data=st.data(),
)
def test_unnormalize_inverts_normalize(seed, normalization, shape, offset, leading, data):
    size = int(np.prod(shape))
    elements = st.sets(st.integers(0, size - 1))
    field = Field(
        shape,
        angles=tuple(sorted(data.draw(elements))),
        discrete=tuple(data.draw(elements)),
        normalization=normalization,
    )
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(20, *shape)) + offset).astype(np.float32)
    normalizer = fitted(field, values)
    x = rng.uniform(-3, 3, (*leading, *shape)).astype(np.float32)
    features = normalizer.normalize("state", torch.from_numpy(x))
    assert features.shape == (*leading, normalizer.size("state"))
    back = normalizer.unnormalize("state", features)
    # x may lie 100 from the data, whose spread is about 1: float32 then keeps 1e-5 of it.
    np.testing.assert_allclose(back.numpy(), x, atol=1e-4)


def test_statistics_survive_a_checkpoint():
    normalizer = fitted(Field((2,)), DATA)
    loaded = Normalizer(contract(state=Field((2,))))
    holder = torch.nn.Sequential(loaded)
    holder.load_state_dict(torch.nn.Sequential(normalizer).state_dict())
    x = torch.tensor([3.0, 4.0])
    assert torch.equal(loaded.normalize("state", x), normalizer.normalize("state", x))
    assert loaded.digest() == normalizer.digest() == copy.deepcopy(loaded).digest()
    other = fitted(Field((2,)), DATA + 1)
    assert other.digest() != normalizer.digest()


def test_missing_statistics_are_an_error():
    normalizer = Normalizer(contract())
    for use in (
        lambda: normalizer.normalize("state", torch.zeros(1)),
        lambda: normalizer.unnormalize("state", torch.zeros(1)),
        normalizer.digest,
    ):
        with pytest.raises(ValueError, match="no statistics: fit it or load"):
            use()


@pytest.mark.parametrize("strict", [True, False])
def test_loading_other_statistics_is_an_error_that_names_both(strict):
    state = fitted(Field((2,)), DATA).state_dict()
    for fields in ({"state": Field((3,))}, {"pose": Field((2,))}):
        with pytest.raises(ContractError, match=r"state/center': \(2,\).* the contract needs"):
            Normalizer(contract(**fields)).load_state_dict(state, strict=strict)
    del state["state/scale"]
    with pytest.raises(ContractError, match=r"the contract needs .*state/scale"):
        Normalizer(contract(state=Field((2,)))).load_state_dict(state, strict=strict)


def test_loading_broken_statistics_is_an_error():
    normalizer = fitted(Field((2,)), DATA)
    state = normalizer.state_dict()
    state["state/scale"][0] = torch.nan
    with pytest.raises(ContractError, match=r"\['state/scale'\] of the state dict are not finite"):
        normalizer.load_state_dict(state)


def test_unknown_fields_and_shapes_are_errors():
    normalizer = fitted(Field((2,)), DATA)
    for use in (normalizer.normalize, normalizer.unnormalize):
        with pytest.raises(KeyError, match=r"'pose'; known are \['action', 'state'\]"):
            use("pose", torch.zeros(2))
        with pytest.raises(ValueError, match=r"state has shape \(3,\), it must end in \(2,\)"):
            use("state", torch.zeros(3))
    with pytest.raises(KeyError, match="'pose'"):
        normalizer.size("pose")
    with pytest.raises(ContractError, match=r"'a.b' holds a '.'"):
        Normalizer(contract(**{"a.b": Field((1,))}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((0, 2)), "state has zero steps"),
        (np.array([[0, 0], [0, np.nan]]), "not a finite number at step 1"),
        (np.zeros((3, 4)), r"shape \(3, 4\), it must end in \(2,\)"),
    ],
)
def test_unusable_data_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        fitted(Field((2,)), values)


def test_a_missing_field_is_an_error():
    with pytest.raises(ValueError, match="lacks the field 'state'"):
        Normalizer.fit(contract(), {"action": np.zeros((1, 1))})
