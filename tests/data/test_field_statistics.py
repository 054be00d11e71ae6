"""Statistics of fields: percentiles as limits, and data in blocks as data in memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.blocks import Blocks
from data.normalize import Normalizer
from data.store import EpisodeStore
from data.types import Contract, Field

RNG = np.random.default_rng(0)


def fitted(field: Field, values: np.ndarray) -> Normalizer:
    contract = Contract({"state": field}, Field((1,), normalization="identity"), 0.1)
    return Normalizer.fit(contract, {"state": values, "action": np.zeros((len(values), 1))})


def scaled(field: Field, values: np.ndarray) -> np.ndarray:
    return fitted(field, values).normalize("state", torch.from_numpy(values)).numpy()


def test_the_first_and_the_last_percentile_become_minus_one_and_one():
    # Of 0, 1 .. 100 the percentiles are 1 and 99, whatever the order.
    values = RNG.permutation(np.arange(101.0, dtype=np.float32))[:, None]
    ours = scaled(Field((1,), normalization="quantiles"), values)
    np.testing.assert_allclose(ours, (values - 50) / 49, rtol=1e-6, atol=1e-7)


def test_outliers_do_not_squeeze_the_others():
    values = np.concatenate([np.linspace(-1, 1, 998), [1e6, -1e6]]).astype(np.float32)[:, None]
    by_limits = scaled(Field((1,)), values)[:998]
    by_quantiles = scaled(Field((1,), normalization="quantiles"), values)[:998]
    assert np.ptp(by_limits) < 1e-5
    assert 1.9 < np.ptp(by_quantiles) < 2.1


def test_what_hardly_ever_changes_and_what_is_discrete_is_scaled_by_limits():
    values = np.zeros((1000, 3), np.float32)
    values[0, 0] = 4.0  # Both percentiles are 0.
    values[:5, 1] = 1.0  # A gripper that is hardly ever closed.
    values[:, 2] = 7.0
    ours = scaled(Field((3,), normalization="quantiles", discrete=(1,)), values)
    assert (ours[0, 0], ours[1, 0]) == (1, -1)
    assert (ours[0, 1], ours[999, 1]) == (1, -1)
    assert (ours[:, 2] == 0).all()


def test_the_digest_tells_the_ways_of_scaling_apart():
    values = RNG.normal(size=(50, 2)).astype(np.float32)
    ways = ("limits", "gaussian", "quantiles", "identity")
    digests = {fitted(Field((2,), normalization=way), values).digest() for way in ways}
    assert len(digests) == 4
    same = fitted(Field((2,), normalization="quantiles"), values.copy()).digest()
    assert same in digests


def test_a_contract_with_percentiles_comes_back():
    contract = Contract({"state": Field((2,), normalization="quantiles")}, Field((1,)), 0.1)
    assert Contract.from_json(contract.to_json()) == contract


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    """Two kinds of steps in random order; numbers of float32 and float64."""
    contract = Contract(
        {
            "state": Field((2, 2), angles=(3,), discrete=(0,)),
            "wide": Field((2,), dtype="float64"),
            "kind": Field((2,), normalization="identity"),
        },
        Field((1,)),
        0.1,
    )
    path = tmp_path_factory.mktemp("statistics") / "store.zarr"
    with EpisodeStore.create(path, contract) as store:
        for length in (70, 1, 333):
            kinds = RNG.integers(0, 2, length)
            store.append(
                {
                    "state": RNG.normal(size=(length, 2, 2)).astype(np.float32),
                    "wide": 1e3 + RNG.normal(size=(length, 2)),
                    "kind": np.eye(2, dtype=np.float32)[kinds],
                    "action": (100.0 ** kinds[:, None] * RNG.normal(size=(length, 1))),
                }
            )
    return EpisodeStore.open(path)


def varied(contract: Contract, normalization: str, scaled_per: str) -> Contract:
    """The contract with all fields but the one that tells scaled in a way."""
    fields = {
        name: field
        if name == "kind"
        else replace(field, normalization=normalization, scaled_per=scaled_per)
        for name, field in contract.fields.items()
    }
    action = fields.pop("action")
    return replace(contract, observation=fields, action=action)


@pytest.mark.parametrize("normalization", ["limits", "gaussian", "quantiles", "identity"])
@pytest.mark.parametrize("scaled_per", ["", "kind"])
def test_data_in_blocks_have_the_statistics_of_data_in_memory(store, normalization, scaled_per):
    contract = varied(store.contract, normalization, scaled_per)
    rows = np.arange(store.n_steps)
    whole = Normalizer.fit(contract, {name: store.read(name) for name in contract.fields})
    blocks = {name: Blocks(store, name, rows, n_bytes=100) for name in contract.fields}
    streamed = Normalizer.fit(contract, blocks)
    for name, statistic in whole.named_buffers():
        # The last bit of float32, which the order of a sum in float64 may turn.
        torch.testing.assert_close(streamed.get_buffer(name), statistic, rtol=1e-6, atol=1e-7)


def test_what_is_wrong_in_blocks_is_refused_where_it_is(store):
    rows = np.arange(store.n_steps)
    arrays = {name: store.read(name) for name in store.contract.fields}

    def broken(block):
        block = block.copy()
        block[0] = np.where(block[0] == arrays["wide"][20], np.nan, block[0])
        return block

    blocks = Blocks(store, "wide", rows, n_bytes=4 * 16, change=broken)
    with pytest.raises(ValueError, match="wide is not a finite number at step 20"):
        Normalizer.fit(store.contract, {**arrays, "wide": blocks})
    flat = Blocks(store, "wide", rows, change=lambda block: block[:, :1])
    with pytest.raises(ValueError, match=r"wide has shape \(404, 1\), it must end in \(2,\)"):
        Normalizer.fit(store.contract, {**arrays, "wide": flat})
    none = Blocks(store, "wide", rows[:0])
    with pytest.raises(ValueError, match="wide has zero steps"):
        Normalizer.fit(store.contract, {**arrays, "wide": none})
