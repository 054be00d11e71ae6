"""Several sets of statistics: each as fitted alone, each row by its own, and never a wrong one."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.normalize import Normalizer
from data.types import Contract, ContractError, Field

N_SETS = 3
TELLER = Field((N_SETS,), unit="1", frame="lift, push, turn", normalization="identity")


def contract(state: Field, action: Field | None = None) -> Contract:
    """State and action scaled per kind."""
    scaled = [replace(field, scaled_per="kind") for field in (state, action or Field((2,)))]
    return Contract({"state": scaled[0], "kind": TELLER}, scaled[1], 0.1)


def alike(contract: Contract) -> Contract:
    """The same with one set of statistics for all."""
    fields = {name: replace(field, scaled_per="") for name, field in contract.fields.items()}
    action = fields.pop("action")
    return replace(contract, observation=fields, action=action)


def steps_of(contract: Contract, seed=0) -> dict[str, np.ndarray]:
    """Twelve steps of each kind, mixed; their sizes differ a thousandfold from kind to kind."""
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(np.repeat(np.arange(N_SETS), 12))

    def values(field: Field) -> np.ndarray:
        size = (1e3 ** (kinds - 1)).reshape(-1, *[1] * len(field.shape))
        return (size * rng.uniform(-1, 2, (len(kinds), *field.shape))).astype(np.float32)

    told = np.eye(N_SETS, dtype=np.float32)[kinds]
    return {
        "state": values(contract.observation["state"]),
        "kind": told,
        "action": values(contract.action),
    }


CONTRACT = contract(Field((3,)))
STEPS = steps_of(CONTRACT)
KINDS = STEPS["kind"].argmax(axis=1)


@pytest.fixture
def normalizer() -> Normalizer:
    return Normalizer.fit(CONTRACT, STEPS)


@pytest.mark.parametrize("normalization", ["limits", "gaussian", "identity"])
def test_each_set_is_what_its_steps_alone_give(normalization):
    state = Field((3,), angles=(1,), discrete=(2,), normalization=normalization)
    given = contract(state)
    fitted = Normalizer.fit(given, STEPS)
    assert fitted.get_buffer("state/center").shape == (N_SETS, 2)  # An angle has no statistics.
    assert fitted.get_buffer("kind/center").shape == (N_SETS,)
    for kind in range(N_SETS):
        own = {name: values[kind == KINDS] for name, values in STEPS.items()}
        alone = Normalizer.fit(alike(given), own)
        for name in ("state", "action"):
            for statistic in ("center", "scale"):
                expected = alone.get_buffer(f"{name}/{statistic}")
                assert torch.equal(fitted.get_buffer(f"{name}/{statistic}")[kind], expected)


def test_numbers_of_any_size_span_the_same_range_and_come_back(normalizer):
    actions, kinds = torch.from_numpy(STEPS["action"]), torch.from_numpy(KINDS)
    scaled = normalizer.normalize("action", actions, kinds)
    for kind in range(N_SETS):
        torch.testing.assert_close(scaled[kinds == kind].amin(0), torch.tensor([-1.0, -1.0]))
        torch.testing.assert_close(scaled[kinds == kind].amax(0), torch.tensor([1.0, 1.0]))
    # Scaled together, the smallest ones would be all the same.
    together = Normalizer.fit(alike(CONTRACT), STEPS).normalize("action", actions)
    assert together[kinds == 0].std(dim=0).max() < 1e-5
    back = normalizer.unnormalize("action", scaled, kinds)
    # A few roundings of numbers as large as their scale, the smallest of which is 1e-3.
    for kind in range(N_SETS):
        limit = 1e-6 * 1e3 ** (kind - 1)
        torch.testing.assert_close(
            back[kinds == kind], actions[kinds == kind], rtol=1e-6, atol=3 * limit
        )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(), (1,), (4,), (2, 3)]),
    trailing=st.sampled_from([(), (5,), (2, 3)]),
    n_rows=st.integers(0, 6),
    data=st.data(),
)
def test_rows_of_any_sets_come_back(seed, shape, trailing, n_rows, data):
    angles = data.draw(st.sets(st.integers(0, int(np.prod(shape)) - 1)))
    given = contract(Field(shape, angles=tuple(sorted(angles)), normalization="gaussian"))
    normalizer = Normalizer.fit(given, steps_of(given, seed))
    rng = np.random.default_rng(seed)
    sets = torch.from_numpy(rng.integers(0, N_SETS, n_rows))
    size = n_rows, *trailing, normalizer.size("state")
    features = torch.from_numpy(rng.uniform(-2, 2, size).astype(np.float32))
    x = normalizer.unnormalize("state", features, sets)
    assert x.shape == (n_rows, *trailing, *shape)
    again = normalizer.unnormalize("state", normalizer.normalize("state", x, sets), sets)
    # Row by row, since the sizes of the sets differ; a rounding of x is one of its scale.
    for row, back, kind in zip(x, again, sets.tolist(), strict=True):
        limit = max(1e-5, 1e-5 * 1e3 ** (kind - 1))
        np.testing.assert_allclose(back.numpy(), row.numpy(), rtol=1e-5, atol=limit)


def test_each_row_is_scaled_as_if_it_were_alone(normalizer):
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(7, 2, 3)).astype(np.float32))
    sets, order = torch.from_numpy(rng.integers(0, N_SETS, 7)), torch.from_numpy(rng.permutation(7))
    for use in (normalizer.normalize, normalizer.unnormalize):
        whole = use("state", x, sets)
        assert torch.equal(use("state", x[order], sets[order]), whole[order])
        for row in range(7):
            alone = use("state", x[row : row + 1], sets[row : row + 1])
            assert torch.equal(alone[0], whole[row])


def test_sets_are_told_by_the_newest_step(normalizer):
    told = torch.eye(N_SETS)[torch.tensor([[0, 1], [1, 2], [2, 0]])]
    assert normalizer.sets_of({"kind": told}).tolist() == [1, 2, 0]
    assert Normalizer.fit(alike(CONTRACT), STEPS).sets_of({}) is None
    with pytest.raises(KeyError, match=r"lacks 'kind', which tells .* given are \['state'\]"):
        normalizer.sets_of({"state": told})


def test_a_field_of_several_sets_is_not_scaled_without_one(normalizer):
    for use in (normalizer.normalize, normalizer.unnormalize):
        with pytest.raises(ValueError, match=r"'action' has 3 sets .* one per element of 'kind'"):
            use("action", torch.zeros(4, 2))
        for x in (torch.zeros(4, 2), torch.zeros(2)):
            with pytest.raises(ValueError, match=r"sets has shape \(2,\) for 'action' of leading"):
                use("action", x, torch.tensor([0, 1]))


def test_a_field_of_one_set_does_not_look_at_them(normalizer):
    x, sets = torch.randn(4, 3), torch.tensor([2, 1, 0, 1])
    assert torch.equal(normalizer.normalize("kind", x, sets), x)
    one = Normalizer.fit(alike(CONTRACT), STEPS)
    for use in (one.normalize, one.unnormalize):
        assert torch.equal(use("state", x, sets), use("state", x))


def test_the_digest_of_one_set_is_what_it_was_before_there_were_several():
    """By hand, as checkpoints of older programs have it in their contract."""
    one = Normalizer.fit(alike(CONTRACT), STEPS)
    digest = hashlib.sha256()
    for name, shape, way in (
        ("action", "(2,)", "limits"),
        ("kind", "(3,)", "identity"),
        ("state", "(3,)", "limits"),
    ):
        digest.update(f"{name} {shape} {way} ()".encode())
        for statistic in ("center", "scale"):
            digest.update(one.get_buffer(f"{name}/{statistic}").numpy().astype("<f4").tobytes())
    assert one.digest() == digest.hexdigest()


def test_the_digest_tells_the_sets(normalizer):
    swapped = {**STEPS, "kind": STEPS["kind"][:, [1, 0, 2]]}
    others = [Normalizer.fit(CONTRACT, swapped), Normalizer.fit(alike(CONTRACT), STEPS)]
    assert len({normalizer.digest(), *(other.digest() for other in others)}) == 3


def test_sets_survive_a_checkpoint_of_the_same_contract_only(normalizer):
    loaded = Normalizer(CONTRACT)
    loaded.load_state_dict(normalizer.state_dict())
    assert loaded.digest() == normalizer.digest()
    with pytest.raises(ContractError, match=r"state/center': \(3, 3\).* the contract needs"):
        Normalizer(alike(CONTRACT)).load_state_dict(normalizer.state_dict())


def test_steps_that_do_not_tell_their_set_are_refused():
    kind = STEPS["kind"].copy()
    kind[5] = [0.5, 0.5, 0.0]
    with pytest.raises(ValueError, match=r"kind is \[0\.5, 0\.5, 0\.0\] at step 5, .* one-hot"):
        Normalizer.fit(CONTRACT, {**STEPS, "kind": kind})
    with pytest.raises(ValueError, match="lacks the field 'kind'"):
        Normalizer.fit(CONTRACT, {name: STEPS[name] for name in ("state", "action")})
    with pytest.raises(ValueError, match="state has 35 steps, kind has 36"):
        Normalizer.fit(CONTRACT, {**STEPS, "state": STEPS["state"][1:]})


def test_a_set_without_steps_is_refused_by_name():
    kept = {name: values[KINDS != 1] for name, values in STEPS.items()}
    with pytest.raises(ValueError, match="no step has element 1 of kind of lift, push, turn"):
        Normalizer.fit(CONTRACT, kept)
