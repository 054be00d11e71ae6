"""Numbers of things agree with their words."""

import pytest

from data.checks.finding import elements, in_episodes
from data.wording import agree, counted


@pytest.mark.parametrize(("n", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps")])
def test_one_thing_is_singular_and_none_is_not(n, text):
    assert counted(n, "step") == text
    assert agree(n, "is", "are") == ("is" if n == 1 else "are")


def test_elements_and_episodes_agree_with_what_is_said_of_them():
    assert elements([3], "is", "are") == "element 3 is"
    assert elements([3, 4], "is", "are") == "elements 3, 4 are"
    assert in_episodes([5, 5]) == "in 1 episode: 5"
    assert in_episodes([5, 2]) == "in 2 episodes: 2, 5"
