"""What the guard of a fine-tuning run decides."""

import pytest

from policy.guard import Guard, Verdict


def test_the_best_is_kept_and_small_losses_are_borne():
    guard = Guard(max_drop=0.2)
    assert guard.judge(0.5) is Verdict.BEST
    assert guard.judge(0.5) is Verdict.GO_ON
    assert guard.judge(0.31) is Verdict.GO_ON
    assert guard.judge(0.6) is Verdict.BEST
    assert guard.best == 0.6
    assert guard.rate_scale == 1.0


def test_a_collapse_is_undone_so_many_times():
    guard = Guard(max_drop=0.2, max_rollbacks=2, rate_factor=0.5)
    guard.judge(0.9)
    assert guard.judge(0.1) is Verdict.ROLL_BACK
    assert guard.rate_scale == 0.5
    assert guard.collapse() is Verdict.ROLL_BACK
    assert guard.judge(0.0) is Verdict.GIVE_UP
    assert guard.best == 0.9


@pytest.mark.parametrize(
    "settings", [{"max_drop": 0.0}, {"rate_factor": 2.0}, {"max_rollbacks": -1}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"guard.{next(iter(settings))}"):
        Guard(**settings)
