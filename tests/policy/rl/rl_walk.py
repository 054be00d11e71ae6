"""A small environment and a small policy for it."""

from functools import partial

import gymnasium as gym
import numpy as np
import torch

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from envs.vector import make_vec
from policy.diffusion.precond import EDM
from policy.model import DiffusionPolicy
from policy.nets.encoders import StateEncoder
from policy.nets.mlp import ResidualMLP
from policy.ranks import Ranks
from policy.rl.behaviour import Behaviour
from policy.rl.reward import ChunkReward
from policy.rl.slots import Slots


class Walk(gym.Env):
    """A point that is moved by the action; the reward is 1 a step, or minus its distance from 1."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        *,
        n_steps: int,
        is_constant: bool = True,
        broken_at: int | None = None,
        unpaid_at: int | None = None,
    ):
        self.observation_space = gym.spaces.Dict({"state": gym.spaces.Box(-9, 9, (1,))})
        self.action_space = gym.spaces.Box(-1, 1, (1,))
        self.n_steps, self.is_constant = n_steps, is_constant
        self.broken_at, self.unpaid_at = broken_at, unpaid_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.uniform(-0.5, 0.5)
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        self.x += 0.1 * float(action[0])
        reward = 1.0 if self.is_constant else -abs(self.x - 1)
        if self.t == self.broken_at:
            self.x = np.nan
        if self.t == self.unpaid_at:
            reward = np.nan
        return self._observation(), reward, self.t >= self.n_steps, False, {"is_success": False}

    def _observation(self):
        return {"state": np.array([self.x], np.float32)}


HORIZONS = Horizons(obs=1, pred=4, action=2)


def make_policy(seed=0):
    contract = Contract(
        observation={"state": Field(shape=(1,), normalization="identity")},
        action=Field(shape=(1,), normalization="identity"),
        control_dt=0.1,
    )
    arrays = {"state": np.zeros((2, 1)), "action": np.zeros((2, 1))}
    torch.manual_seed(seed)
    encoder = StateEncoder(feature_shapes={"state": (1,)}, obs_horizon=1)
    net = ResidualMLP(action_size=1, cond_size=1, pred_horizon=4, size=16, n_blocks=1)
    torch.nn.init.normal_(net.out.weight, std=0.2)
    policy = DiffusionPolicy(
        encoder, net, EDM(), Normalizer.fit(contract, arrays), contract, HORIZONS
    )
    return policy.eval()


def make_behaviour(policy, kernel, *, decided=None):
    n = kernel.n_steps
    return Behaviour(policy, kernel, [policy] * n, decided or range(n), HORIZONS)


def make_slots(n=3, *, seed=0, ranks=None, group_size=1, is_episodic=None, reward=None, **settings):
    envs = make_vec(
        partial(Walk, **{"n_steps": 5, **settings}), n, horizons_obs=1, horizons_action=2
    )
    return Slots(
        envs,
        reward or ChunkReward(total=1.0, success=0.0),
        seed=seed,
        ranks=ranks or Ranks(),
        group_size=group_size,
        is_episodic=group_size > 1 if is_episodic is None else is_episodic,
    )
