"""An expert for Gymnasium's MuJoCo tasks, which come without one: it plans in a second copy.

Of some random variations of its last plan it takes the one with the highest return, executes the
first actions, and plans again. It looks less than a second ahead (a hopper hops some steps and
falls): poor demonstrations, to be improved by reward.

Source: Howell et al. 2022, "Predictive sampling", arXiv:2212.00541, algorithm 1, whose name it has.

Differences from the paper: the plan is linear between its knots, and varied by two sizes of noise,
so that a plan which is good already is still refined; a plan in which the episode terminates,
which in these tasks is a fall, loses a constant of its return.

Shape legend: `H` steps of a plan, `M` plans, `P` knots, `Da` action size.
"""

# MuJoCo ships no type stubs, its names come from a compiled module.
# pyright: reportAttributeAccessIssue=false

import os
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

from envs.rendering import DEFAULT, RenderingError, choose_backend

Expert = Callable[[Mapping[str, np.ndarray]], np.ndarray]

HORIZON = 0.8  # s
N_KNOTS = 10
N_PLANS = 40
STEPS = 4  # that are executed before the next plan
NOISE = (0.15, 0.5)  # of half the plans each, in half ranges of an action
FALL = 50.0  # of return


class Planned(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """A MuJoCo task of Gymnasium with an expert, drawn by whichever OpenGL backend works.

    Args:
        env: whose innermost environment is a `MujocoEnv`.
    """

    def __init__(self, env: gymnasium.Env):
        # Recorded so that `env.spec.make()` builds the same wrapper again.
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)

    def render(self) -> Any:
        """A picture, as the task's render mode has it.

        Raises:
            RenderingError: nothing renders here; the message says how to install what does.
        """
        backend = choose_backend()
        if backend != DEFAULT:
            os.environ["MUJOCO_GL"] = backend  # Which Gymnasium reads at the first picture.
        try:
            return self.env.render()
        except mujoco.FatalError as error:
            raise RenderingError(f"the OpenGL backend {backend!r} cannot draw: {error}") from error

    def experts(self) -> dict[str, Callable[[np.random.Generator], Expert]]:
        """A planner that looks at the simulator's state."""
        return {"planner": self._make_expert}

    def _make_expert(self, rng: np.random.Generator) -> Expert:
        """A fresh expert for one episode of this environment."""
        spec = self.env.unwrapped.spec
        assert spec is not None
        copy = gymnasium.make(spec.id, **spec.kwargs).unwrapped
        planner = PredictiveSampling(copy, rng)
        queue: list[np.ndarray] = []

        def act(observation: Mapping[str, np.ndarray]) -> np.ndarray:
            if not queue:
                data = self.env.unwrapped.data
                queue.extend(planner(data.qpos.copy(), data.qvel.copy())[:STEPS])
            return queue.pop(0).astype(np.float32)

        return act


class PredictiveSampling:
    """Plans from one state after the other.

    Args:
        sim: of its own; what it is used for changes its state.
        rng: of the variations.
    """

    def __init__(self, sim: gymnasium.Env, rng: np.random.Generator):
        assert isinstance(sim, MujocoEnv)
        assert isinstance(sim.action_space, gymnasium.spaces.Box)
        self.sim, self.rng = sim, rng
        self.low, self.high = sim.action_space.low, sim.action_space.high
        self.horizon = max(2 * STEPS, round(HORIZON / sim.dt))
        knots = np.linspace(0, self.horizon - 1, N_KNOTS)
        eye = np.eye(N_KNOTS)
        self.hats = np.stack([np.interp(np.arange(self.horizon), knots, row) for row in eye])
        self.plan = np.zeros((self.horizon, len(self.low)))

    def __call__(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Actions [H, Da] from a state on; the next call expects `STEPS` of them to be done.

        Args:
            qpos: positions of the simulator.
            qvel: velocities of it.
        """
        plans = self.variations()
        best = plans[np.argmax([self.rate(plan, qpos, qvel) for plan in plans])]
        self.plan = np.concatenate([best[STEPS:], np.repeat(best[-1:], STEPS, axis=0)])
        return best

    def variations(self) -> np.ndarray:
        """The last plan and variations of it [M, H, Da]."""
        noise = self.rng.standard_normal((N_PLANS, N_KNOTS, len(self.low)))
        noise *= np.repeat(NOISE, N_PLANS // len(NOISE))[:, None, None]
        noise[0] = 0.0
        shifts = np.einsum("ph,mpd->mhd", self.hats, noise) * (self.high - self.low) / 2
        return np.clip(self.plan + shifts, self.low, self.high)

    def rate(self, plan: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> float:
        """Return of a plan [H, Da] from a state on; what comes after a fall is lost."""
        self.sim.set_state(qpos, qvel)
        total = 0.0
        for action in plan:
            _, reward, has_fallen, _, _ = self.sim.step(action)
            total += float(reward)
            if has_fallen:
                return total - FALL
        return total
