"""Foreign environments with named observations, contract and success flag."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from data.types import Contract
from envs import gymnasium_adapter
from envs.adapter import Adapter


class Foreign(gymnasium.Env):
    """Gives back one buffer again and again, as some environments do."""

    action_space = spaces.Box(-2.0, 2.0, (1,), np.float64)

    def __init__(self, space=None, **info):
        self.observation_space = space or spaces.Box(-1.0, 1.0, (3,), np.float64)
        self.info = info
        self.buffer = np.zeros(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.buffer[:] = 0
        return self._observation(), {}

    def step(self, action):
        self.buffer += 0.25
        return self._observation(), float(self.buffer[0]), False, False, dict(self.info)

    def _observation(self):
        if isinstance(self.observation_space, spaces.Dict):
            return {"arm": self.buffer, "picture": np.zeros((4, 4, 3), np.uint8)}
        return self.buffer


def test_box_becomes_named_float32_state():
    env = Adapter(Foreign(), control_dt=0.1)
    observation, info = env.reset(seed=0)
    assert list(observation) == ["state"]
    assert observation["state"].dtype == np.float32
    assert env.observation_space.contains(observation)
    assert info["is_success"] is False


def test_observations_share_no_memory():
    env = Adapter(Foreign(), control_dt=0.1)
    first, _ = env.reset()
    second, *_ = env.step(np.zeros(1))
    np.testing.assert_array_equal(first["state"], 0.0)
    np.testing.assert_array_equal(second["state"], 0.25)


def test_dict_keeps_names_and_images_stay_uint8():
    space = spaces.Dict(
        {"arm": spaces.Box(-1, 1, (3,)), "picture": spaces.Box(0, 255, (4, 4, 3), np.uint8)}
    )
    env = Adapter(Foreign(space), control_dt=0.1)
    contract = Contract.from_json(env.metadata["contract"])
    assert contract.observation["picture"].is_image
    assert contract.observation["arm"].low == (-1, -1, -1)
    assert env.reset()[0]["picture"].dtype == np.uint8


def test_contract_follows_from_spaces_and_fields():
    env = Adapter(Foreign(), control_dt=0.02, task="wait", fields={"action": {"unit": "m"}})
    contract = Contract.from_json(env.metadata["contract"])
    assert (contract.control_dt, contract.task) == (0.02, "wait")
    assert (contract.action.unit, contract.action.low, contract.action.high) == ("m", (-2,), (2,))


def test_unbounded_spaces_have_no_limits_in_the_contract():
    env = Adapter(Foreign(spaces.Box(-np.inf, np.inf, (3,))), control_dt=0.1)
    assert Contract.from_json(env.metadata["contract"]).observation["state"].low is None


@pytest.mark.parametrize("info", [{"success": 1.0}, {"is_success": True}])
def test_success_flag_is_passed_through(info):
    env = Adapter(Foreign(**info), control_dt=0.1)
    env.reset()
    assert env.step(np.zeros(1))[-1]["is_success"] is True


def test_success_is_false_without_a_flag_and_can_follow_the_reward():
    env = Adapter(Foreign(), control_dt=0.1)
    env.reset()
    assert env.step(np.zeros(1))[-1]["is_success"] is False
    env = Adapter(Foreign(), control_dt=0.1, success_reward=0.5)
    env.reset()
    flags = [env.step(np.zeros(1))[-1]["is_success"] for _ in range(3)]
    assert flags == [False, True, True]  # Rewards 0.25, 0.5, 0.75.


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(4), "a Box or a flat Dict"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Box(0, 1)})}), r"\['a'\]"),
    ],
)
def test_other_observations_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        Adapter(Foreign(space), control_dt=0.1)


def test_unknown_field_is_refused():
    with pytest.raises(ValueError, match=r"no such field: \['arm'\]"):
        Adapter(Foreign(), control_dt=0.1, fields={"arm": {"unit": "m"}})


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="discrete actions are not supported"):
        gymnasium_adapter.make("CartPole-v1")


def test_unregistered_environment_names_near_matches():
    with pytest.raises(ValueError, match=r"env\.id=Pendulm-v1 cannot be made: .*Pendulum"):
        gymnasium_adapter.make("Pendulm-v1")


def test_registered_environment_and_its_control_period():
    env = gymnasium_adapter.make("Pendulum-v1")  # dt 0.05 s in its source.
    assert env.metadata["contract"]["control_dt"] == 0.05
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert gymnasium_adapter.make("MountainCarContinuous-v0").metadata["contract"][
        "control_dt"
    ] == pytest.approx(1 / 30)  # It has no dt, only render_fps 30.
    given = gymnasium_adapter.make("Pendulum-v1", control_dt=0.1)
    assert given.metadata["contract"]["control_dt"] == 0.1


def test_environment_without_a_clock_is_refused():
    gymnasium.register("test/Clockless-v0", Foreign)
    try:
        with pytest.raises(ValueError, match="neither dt nor render_fps"):
            gymnasium_adapter.make("test/Clockless-v0")
    finally:
        gymnasium.registry.pop("test/Clockless-v0")


def test_adapter_is_rebuilt_by_its_spec():
    env = gymnasium_adapter.make("Pendulum-v1")
    assert env.spec is not None
    again = gymnasium.make(env.spec)
    assert again.metadata["contract"] == env.metadata["contract"]
