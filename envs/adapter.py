"""Foreign Gymnasium environments made to speak ours: named observations, a contract, `is_success`.

A Box observation becomes `{"state": ...}`, a flat Dict of Boxes keeps its names; numbers become
float32, images stay uint8. The contract follows from the spaces; an adapter that knows more about a
field (units, angles) adds it.
"""

from collections.abc import Mapping

import gymnasium
import numpy as np
from gymnasium import spaces

CONTRACT_VERSION = 1


class Adapter(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """A foreign environment with our observations, contract and success flag.

    Args:
        env: observation Box or flat Dict of Boxes, action Box of one dimension.
        control_dt: time between two steps [s].
        task: what is to be done, in words.
        fields: field name (or "action") -> contract entries that the spaces do not tell.
        success_reward: reward from which a step counts as success; None takes the flag
            `is_success` or `success` of the environment's info, false where there is none.

    Raises:
        ValueError: a space of another kind, or `fields` names a field that does not exist.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        control_dt: float,
        task: str = "",
        fields: Mapping[str, Mapping] | None = None,
        success_reward: float | None = None,
    ):
        # Recorded so that `env.spec.make()` builds the same adapter again.
        gymnasium.utils.RecordConstructorArgs.__init__(
            self,
            control_dt=control_dt,
            task=task,
            fields=fields,
            success_reward=success_reward,
        )
        gymnasium.Wrapper.__init__(self, env)
        boxes = _observation_boxes(env.observation_space)
        self._boxes = {name: _our_box(box) for name, box in boxes.items()}
        self.observation_space = spaces.Dict([*self._boxes.items()])
        self.action_space = action = _our_box(_action_box(env.action_space))
        self._success_reward = success_reward
        contract = make_contract(
            self._boxes, action, control_dt=control_dt, task=task, fields=fields or {}
        )
        self.metadata = {**env.metadata, "contract": contract}

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[dict[str, np.ndarray], dict]:
        """The first observation of an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._named(observation), {**info, "is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        """One control step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = float(reward)
        if self._success_reward is None:
            is_success = bool(info.get("is_success", info.get("success", False)))
        else:
            is_success = reward >= self._success_reward
        info = {**info, "is_success": is_success}
        return self._named(observation), reward, bool(terminated), bool(truncated), info

    def _named(self, observation: np.ndarray | Mapping) -> dict[str, np.ndarray]:
        """Copies, so that an environment that reuses its buffers cannot change a recorded step."""
        named = observation if isinstance(observation, Mapping) else {"state": observation}
        return {name: np.array(named[name], dtype=box.dtype) for name, box in self._boxes.items()}


def make_contract(
    observation: Mapping[str, spaces.Box],
    action: spaces.Box,
    *,
    control_dt: float,
    task: str,
    fields: Mapping[str, Mapping],
) -> dict:
    """The JSON form of a contract, from the spaces and what else is known of the fields.

    Args:
        observation: field name -> Box.
        action: one action.
        control_dt: time between two steps [s].
        task: what is to be done, in words.
        fields: field name (or "action") -> entries added to those of the space.

    Raises:
        ValueError: `fields` names a field that does not exist.
    """
    boxes = {**observation, "action": action}
    unknown = set(fields) - set(boxes)
    if unknown:
        raise ValueError(f"no such field: {sorted(unknown)}; there are {sorted(boxes)}")
    entries = {name: {**_field(box), **fields.get(name, {})} for name, box in boxes.items()}
    return {
        "version": CONTRACT_VERSION,
        "control_dt": float(control_dt),
        "task": task,
        "action": entries.pop("action"),
        "observation": entries,
    }


def _field(box: spaces.Box) -> dict:
    """Contract entries that a Box tells; limits only where all are finite."""
    entry: dict = {"shape": list(box.shape), "dtype": str(box.dtype)}
    if box.dtype != np.uint8 and box.is_bounded("both"):
        entry |= {"low": box.low.ravel().tolist(), "high": box.high.ravel().tolist()}
    return entry


def _observation_boxes(space: spaces.Space) -> dict[str, spaces.Box]:
    if isinstance(space, spaces.Box):
        return {"state": space}
    if not isinstance(space, spaces.Dict):
        raise ValueError(
            f"the observation space is {space}; a Box or a flat Dict of Boxes is needed: "
            f"wrap the environment with gymnasium.wrappers.FlattenObservation first"
        )
    boxes = {name: box for name, box in space.spaces.items() if isinstance(box, spaces.Box)}
    if len(boxes) < len(space.spaces):
        wrong = sorted(set(space.spaces) - set(boxes))
        raise ValueError(
            f"the observation entries {wrong} are {[space.spaces[name] for name in wrong]}; only "
            f"Boxes at the top level are supported: flatten the environment's observation first"
        )
    return boxes


def _action_box(space: spaces.Space) -> spaces.Box:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"the action space is {space}; a Box of one dimension is needed, because chunks of "
            f"actions are continuous: discrete actions are not supported"
        )
    return space


def _our_box(box: spaces.Box) -> spaces.Box:
    """The same limits as float32; an image stays uint8."""
    if box.dtype == np.uint8 and len(box.shape) == 3:
        return box
    return spaces.Box(box.low.astype(np.float32), box.high.astype(np.float32), dtype=np.float32)
