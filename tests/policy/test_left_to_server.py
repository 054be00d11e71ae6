"""Settings of `cadence run` that a policy server has decided: none of them is silently ignored."""

import pytest

from policy.entry import compose_config
from policy.run import run
from policy.run_planner import OF_THE_PLANNER

OTHERS = {
    "sampler": "rti",
    "engine": "fused",
    "urgent": "ddim_3",
    "action_horizon": "3",
    "goal_weight": "0.5",
    "device": "auto",
    "threads": "2",
}


def test_each_setting_of_the_planner_has_a_case():
    assert sorted(OTHERS) == sorted(OF_THE_PLANNER)


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_refused(name):
    given = ["env=pillar", "policy=ws://127.0.0.1:1", f"{name}={OTHERS[name]}"]
    with pytest.raises(ValueError, match=f"^{name} is set here, and the policy runs in a server"):
        run(compose_config("run", given))
