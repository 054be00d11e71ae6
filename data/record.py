"""Demonstrations of scripted experts in any Gymnasium environment, recorded into a store.

Every start is tried once by every expert. A recording that was interrupted, by Ctrl-C, a full disk
or a kill, is continued by starting it again: what the store holds already is skipped.
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from data.store import EpisodeStore
from data.types import Contract, ContractError, Field

Expert = Callable[[dict[str, np.ndarray]], np.ndarray]  # observation -> action, for one episode


@dataclass(frozen=True)
class RecordReport:
    """What became of the episodes of a recording.

    Args:
        n_total: episodes asked for: seeds times experts.
        n_skipped: of these, recorded before.
        kept: expert -> episodes added to the store.
        fewest: episodes of the task that the store holds of the expert who has fewest.
        failed: expert -> episodes without success, which are not kept unless all are.
        n_clipped: actions outside the action space, executed and recorded at its border.
        is_interrupted: whether Ctrl-C ended the recording.
    """

    n_total: int
    n_skipped: int
    kept: dict[str, int]
    failed: dict[str, int]
    n_clipped: int
    fewest: int
    is_interrupted: bool = False

    @property
    def n_kept(self) -> int:
        """Episodes added to the store."""
        return sum(self.kept.values())

    @property
    def n_failed(self) -> int:
        """Episodes without success."""
        return sum(self.failed.values())


@dataclass(frozen=True)
class Episode:
    """One episode in memory.

    Args:
        fields: field name -> [L, ...]; the observation of a step is the one its action answers.
        is_success: whether the task was accomplished at any step.
        mode: index of the way it was done, None where the task does not say.
        n_clipped: actions that were moved to the border of the action space.
    """

    fields: dict[str, np.ndarray]
    is_success: bool
    mode: int | None
    n_clipped: int


def record(
    env: gym.Env,
    experts: Mapping[str, Callable[[np.random.Generator], Expert]],
    store: EpisodeStore,
    *,
    seeds: Iterable[int],
    keep: Literal["success", "all"] = "success",
    enough: int | None = None,
    progress: Callable[[RecordReport], object] | None = None,
) -> RecordReport:
    """Record every expert from every start.

    Ctrl-C ends the recording early; the report says so. Whatever happens, finished episodes stay.

    Args:
        env: with a Dict or a Box observation (the field "state" then) and a Box action.
        experts: name -> makes the expert of one episode from a random generator.
        store: opened for appending.
        seeds: one start each.
        keep: whether episodes without success are kept.
        enough: episodes of the task that the store is to hold of each expert; further starts are
            not tried. None tries all.
        progress: called after every episode with the report so far.

    Raises:
        ContractError: environment and store do not mean the same numbers.
        StoreError: an episode does not fit the store or cannot be written.
        ValueError: no experts, or another `keep`.
    """
    if keep not in ("success", "all"):
        raise ValueError(f"keep is {keep!r}, choose 'success' or 'all'")
    if not experts:
        raise ValueError("no experts: give at least one, or an environment that has some")
    if "contract" in env.metadata:
        store.contract.check(contract_of(env), this=f"store {store.path}", that=f"env {env}")
    wanted = [(int(seed), name) for seed in seeds for name in experts]
    # A store may hold several tasks of one contract.
    task = env.metadata.get("contract", {}).get("task", "")
    recorded = {
        (e.get("seed"), e.get("expert")) for e in store.episode_metadata if e.get("task") == task
    }
    before = Counter(expert for _, expert in recorded)
    todo = [pair for pair in wanted if pair not in recorded]
    n_before, n_clipped = store.n_episodes, 0
    kept: Counter[str] = Counter()
    failed: Counter[str] = Counter()

    def report(is_interrupted: bool = False) -> RecordReport:
        return RecordReport(
            n_total=len(wanted),
            n_skipped=len(wanted) - len(todo),
            kept=dict(kept),
            failed=dict(failed),
            n_clipped=n_clipped,
            fewest=min(before[name] + kept[name] for name in experts),
            is_interrupted=is_interrupted,
        )

    try:
        for seed, name in todo:
            if enough is not None and before[name] + kept[name] >= enough:
                continue
            expert = experts[name](expert_generator(seed, name))
            episode = run_episode(env, expert, seed=seed, contract=store.contract)
            n_clipped += episode.n_clipped
            if not episode.is_success:
                failed[name] += 1
            if episode.is_success or keep == "all":
                metadata: dict[str, object] = {
                    "seed": seed,
                    "expert": name,
                    "success": episode.is_success,
                    "task": task,
                }
                if episode.mode is not None:
                    metadata["mode"] = episode.mode
                store.append(episode.fields, **metadata)
                kept[name] += 1
            if progress is not None:
                progress(report())
    except KeyboardInterrupt:
        # The store knows best whether the interrupted episode is in it.
        kept = Counter(str(e["expert"]) for e in store.episode_metadata[n_before:])
        return report(is_interrupted=True)
    return report()


def run_episode(env: gym.Env, expert: Expert, *, seed: int, contract: Contract) -> Episode:
    """One episode of an expert from the start of a seed, until terminated or truncated.

    Raises:
        ContractError: the environment's observation lacks a field of the contract.
    """
    steps: dict[str, list[np.ndarray]] = {name: [] for name in contract.fields}
    observation, _ = env.reset(seed=seed)
    is_success, mode, n_clipped, is_over = False, None, 0, False
    while not is_over:
        fields = _named_fields(observation, contract)
        wanted = np.asarray(expert(fields), contract.action.dtype)
        action = _executable(env, wanted)
        n_clipped += not np.array_equal(action, wanted)
        for name in contract.observation:
            steps[name].append(np.array(fields[name]))  # A copy: the env may reuse its arrays.
        steps["action"].append(action)
        observation, _, terminated, truncated, outcome = env.step(action.copy())
        is_success |= bool(outcome.get("is_success", False))
        mode = int(outcome["mode"]) if "mode" in outcome else None
        is_over = terminated or truncated
    return Episode(
        fields={name: np.stack(values) for name, values in steps.items()},
        is_success=is_success,
        mode=mode,
        n_clipped=n_clipped,
    )


def expert_generator(seed: int, expert: str) -> np.random.Generator:
    """Random numbers of an expert in the episode of a seed, whoever else is recorded."""
    return np.random.default_rng([seed, zlib.crc32(expert.encode())])


def contract_of(env: gym.Env) -> Contract:
    """What the numbers of an environment mean.

    Either what it says itself, in JSON form in `env.metadata["contract"]`, or what follows from its
    spaces and `metadata["render_fps"]`; units are unknown then.

    Raises:
        ContractError: a space that is no Box or flat Dict of them, or no rate.
    """
    stated = env.metadata.get("contract")
    if stated is not None:
        return Contract.from_json(stated)
    rate = env.metadata.get("render_fps")
    if not rate:
        raise ContractError(
            f"{env} does not say its control rate: give it a metadata['contract'], "
            f"or metadata['render_fps'] [Hz]"
        )
    space = env.observation_space
    named = dict(space.items()) if isinstance(space, spaces.Dict) else {"state": space}
    return Contract(
        observation={name: _field_of(name, part) for name, part in named.items()},
        action=_field_of("action", env.action_space),
        control_dt=1 / rate,
    )


def _field_of(name: str, space: spaces.Space) -> Field:
    if not isinstance(space, spaces.Box):
        raise ContractError(f"the space of {name!r} is {space}, only Box can be recorded: wrap it")
    is_float = np.issubdtype(space.dtype, np.floating)
    low, high = space.low.reshape(-1).tolist(), space.high.reshape(-1).tolist()
    return Field(
        shape=space.shape,
        dtype="float32" if is_float else np.dtype(space.dtype).name,
        low=_limits(low, space.shape),
        high=_limits(high, space.shape),
    )


def _limits(values: list[float], shape: tuple[int, ...]) -> tuple[float, ...] | None:
    """None for images, whose limits say nothing, and where a limit is infinite."""
    return tuple(values) if len(shape) < 3 and all(map(math.isfinite, values)) else None


def _named_fields(observation: Any, contract: Contract) -> dict[str, np.ndarray]:
    named = observation if isinstance(observation, Mapping) else {"state": observation}
    missing = set(contract.observation) - set(named)
    if missing:
        raise ContractError(
            f"the observation lacks {sorted(missing)} of the store's contract; "
            f"the environment gives {sorted(named)}"
        )
    return {name: np.asarray(value) for name, value in named.items()}


def _executable(env: gym.Env, action: np.ndarray) -> np.ndarray:
    """The action within the action space, which is what an environment executes."""
    if not isinstance(env.action_space, spaces.Box):
        return action.copy()
    return np.clip(action, env.action_space.low, env.action_space.high).astype(action.dtype)
