"""Rotations of any importer as six numbers: the values, and what the contract says of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.importers.importer import ImportedEpisode, ImporterError
from data.importers.six_d import InSixD, rewrite
from data.types import Contract, ContractError, Field

HALF = np.sqrt(0.5)
POSE = Field(
    (8,),
    unit=("m", "m", "m", "rad", "rad", "rad", "1", "rad"),
    rotation="axis_angle",
    discrete=(6,),
    angles=(7,),
    low=(-1, -2, -3, -4, -4, -4, 0, -9),
    high=(1, 2, 3, 4, 4, 4, 1, 9),
)


class Given:
    """An importer of one episode."""

    path = Path("poses")
    n_episodes = 1

    def __init__(self, action: np.ndarray, field: Field, state: Field | None = None):
        self.contract = Contract({"state": state or Field((8,), unit="1")}, field, 0.1)
        self._fields = {"action": action, "state": np.zeros((len(action), 8), np.float32)}

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        if first == 0:
            yield ImportedEpisode(self._fields, {"name": "demo_0"})


def test_a_rotation_becomes_six_numbers_where_it_was():
    action = np.array([[1, 2, 3, 0, 0, np.pi / 2, 1, 0.5]], np.float32)
    importer = InSixD(Given(action, POSE), {"action": [3]})
    (episode,) = importer.episodes()
    expected = [[1, 2, 3, 0, 1, 0, -1, 0, 0, 1, 0.5]]
    np.testing.assert_allclose(episode.fields["action"], expected, atol=1e-6)
    assert episode.fields["action"].dtype == np.float32
    assert episode.metadata == {"name": "demo_0"}
    assert (importer.path, importer.n_episodes) == (Path("poses"), 1)
    assert list(importer.episodes(1)) == []


def test_the_contract_says_so():
    contract = InSixD(Given(np.zeros((1, 8)), POSE), {"action": [3]}).contract
    assert contract.action == Field(
        (11,),
        unit=("m", "m", "m", "1", "1", "1", "1", "1", "1", "1", "rad"),
        rotation="rotation_6d",
        discrete=(9,),
        angles=(10,),
        low=(-1, -2, -3, -1, -1, -1, -1, -1, -1, 0, -9),
        high=(1, 2, 3, 1, 1, 1, 1, 1, 1, 1, 9),
    )
    assert contract.observation["state"] == Field((8,), unit="1")


def test_two_arms_have_two_rotations():
    field = Field((8,), unit="1", rotation="quaternion_wxyz")
    action = np.array([[HALF, 0, 0, HALF, 1, 0, 0, 0]], np.float32)
    importer = InSixD(Given(action, field), {"action": [4, 0]})
    (episode,) = importer.episodes()
    expected = [[0, 1, 0, -1, 0, 0, 1, 0, 0, 0, 1, 0]]
    np.testing.assert_allclose(episode.fields["action"], expected, atol=1e-6)
    assert importer.contract.action.low is None
    np.testing.assert_array_equal(rewrite(action, "quaternion_wxyz", []), action)


def test_a_single_first_element_may_be_given_without_a_list():
    assert InSixD(Given(np.zeros((1, 8)), POSE), {"action": 3}).contract.action.size == 11  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("field", "firsts", "complaint"),
    [
        (POSE, {"pose": [3]}, r"to_6d names \['pose'\], the data set has"),
        (Field((8,), unit="1"), {"action": [3]}, "what its rotation is has not been said"),
        (Field((8,), rotation="rotation_6d"), {"action": [0]}, "or it is 6-D"),
        (Field((8,), rotation="angles"), {"action": [0]}, "choose one of axis_angle"),
        (POSE, {"action": []}, "it must be first elements"),
        (POSE, {"action": ["x"]}, "it must be first elements"),
        (POSE, {"action": "x"}, "it must be first elements"),
        (POSE, {"action": [6]}, "overlap, or leave the field"),
        (POSE, {"action": [2, 3]}, "overlap, or leave the field"),
        (POSE, {"action": [-1]}, "overlap, or leave the field"),
        (
            POSE,
            {"action": [2]},
            r"measured in rad, the unit of its elements is \['m', 'rad', 'rad'\]",
        ),
        (
            Field((8,), unit="1", rotation="euler_xyz"),
            {"action": [0]},
            "scaled cannot be converted",
        ),
        (Field((2, 4), rotation="quaternion_wxyz"), {"action": [0]}, r"whose shape is \(2, 4\)"),
        (
            Field((8,), rotation="quaternion_wxyz", discrete=(2,)),
            {"action": [0]},
            r"elements \[2\] are discrete",
        ),
    ],
)
def test_rotations_that_cannot_be_converted(field, firsts, complaint):
    with pytest.raises(ContractError, match=complaint):
        InSixD(Given(np.zeros((1, 8)), field), firsts)


def test_numbers_that_are_no_rotation_name_the_episode():
    field = Field((8,), unit="1", rotation="quaternion_wxyz")
    importer = InSixD(Given(np.zeros((1, 8)), field), {"action": [0]})
    with pytest.raises(ImporterError, match="poses: demo_0: action: the length of a quaternion"):
        list(importer.episodes())
