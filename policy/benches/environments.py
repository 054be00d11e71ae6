"""Speed of the environments: control steps per second, with and without pictures.

Measured are single environments, many on one thread, many on all threads, and some that are drawn
at every step. Actions are drawn from the whole space; an episode that ended is begun anew in the
same turn. Rates are of the median turn, in which none begins where episodes are long.

Shape legend: `N` envs, `Ta` executed steps, `Da` action size.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from envs.vector import MakeEnv, make_vec
from policy.benches.rounds import Call, percentiles, ratio, take_turns

CHUNK = 8  # Ta
ONE = "one"  # which others are compared with
ACTIONS = 32  # chunks of actions that follow each other, again and again


class Runner:
    """Environments that are stepped on and on.

    Args:
        envs: of `make_vec`.
        pictures: whether each is drawn after every step.
        seed: of the episodes and actions.
    """

    def __init__(self, envs: VectorEnv, *, pictures: bool, seed: int):
        self._envs, self._pictures = envs, pictures
        rng = np.random.default_rng(seed)
        space = envs.action_space
        assert isinstance(space, spaces.Box)
        low = np.where(np.isfinite(space.low), space.low, -1.0)
        high = np.where(np.isfinite(space.high), space.high, 1.0)
        self._actions = [rng.uniform(low, high).astype(space.dtype) for _ in range(ACTIONS)]
        self._turn = 0
        self.calls = self.executed = 0
        envs.reset(seed=seed)

    def __call__(self) -> None:
        """One chunk of steps in each environment, and new episodes where they ended."""
        actions = self._actions[self._turn % ACTIONS]
        self._turn += 1
        _, _, terminated, truncated, infos = self._envs.step(actions)
        self.calls += 1
        self.executed += int(infos["n_executed"].sum())
        if self._pictures:
            self._envs.render()
        ended = terminated | truncated
        if ended.any():
            self._envs.reset(options={"reset_mask": ended})

    @property
    def steps_per_call(self) -> float:
        """Control steps of a call, on average."""
        return self.executed / self.calls


def measure_environments(
    makers: Mapping[str, Callable[[], MakeEnv]],
    *,
    num_envs: int,
    rounds: int,
    seconds: float,
    seed: int = 0,
) -> dict:
    """Control steps per second of each environment.

    Args:
        makers: name -> what gives the environment's maker, or fails where it is not installed.
        num_envs: N.
        rounds: most turns of each.
        seconds: after which no further round begins.
        seed: of episodes and actions.
    """
    runners: dict[str, dict[str, Runner]] = {}
    failures: dict[str, str] = {}
    opened: list[VectorEnv] = []
    for name, maker in makers.items():
        runners[name] = _runners(name, maker, num_envs, seed, opened, failures)
    calls: dict[str, Call] = {
        f"{name}, {kind}": runner
        for name, kinds in runners.items()
        for kind, runner in kinds.items()
    }
    try:
        times = take_turns(calls, rounds=rounds, seconds=seconds) if calls else {}
    finally:
        for envs in opened:
            envs.close()
    rows = []
    for name, kinds in runners.items():
        for kind, runner in kinds.items():
            turns = times[f"{name}, {kind}"] / runner.steps_per_call
            line = {
                "name": f"{name}, {kind}",
                "steps_per_second": 1e3 / percentiles(turns)["p50_ms"],
                "over_one": None,
            }
            one = kinds.get(ONE)
            if one is not None and one is not runner:
                alone = times[f"{name}, {ONE}"] / one.steps_per_call
                line["over_one"] = asdict(ratio(alone, turns))
            rows.append(line)
    return {
        "num_envs": num_envs,
        "rounds": len(next(iter(times.values()), [])),
        "rows": rows,
        "failures": failures,
    }


def _runners(
    name: str,
    maker: Callable[[], MakeEnv],
    num_envs: int,
    seed: int,
    opened: list[VectorEnv],
    failures: dict[str, str],
) -> dict[str, Runner]:
    """One of a kind each, as far as this machine can."""
    kinds = {
        ONE: (1, 1, False),
        f"{num_envs} on a thread": (num_envs, 1, False),
        f"{num_envs} on all": (num_envs, 0, False),
        "one, drawn": (1, 1, True),
    }
    made = {}
    for kind, (n, nthread, pictures) in kinds.items():
        try:
            envs = _opened(maker(), n, nthread=nthread, pictures=pictures)
            opened.append(envs)
            runner = Runner(envs, pictures=pictures, seed=seed)
            runner()  # A machine that cannot draw says so now.
        except (ImportError, ValueError, RuntimeError, OSError) as error:
            failures[f"{name}, {kind}"] = str(error).splitlines()[0]
        else:
            made[kind] = runner
    return made


def _opened(make_env: MakeEnv, n: int, *, nthread: int, pictures: bool) -> VectorEnv:
    return make_vec(
        partial(make_env, render_mode="rgb_array") if pictures else make_env,
        n,
        horizons_obs=1,
        horizons_action=1 if pictures else CHUNK,
        asynchronous=n > 1 and nthread == 0,
        nthread=nthread,
    )
