"""What will be observed when a late chunk begins: the observation, moved on by decided actions.

A chunk that comes `d` ticks late was planned from an observation of `d` ticks ago, and while it was
made the robot executed actions that were decided before. Those are known. So the policy need not
plan from the past: a model of how observations change moves the newest one on by the decided
actions, and the chunk is planned from where they lead.

    seen      o0          planned from      o4 = f(f(f(f(o0, a0), a1), a2), a3)
    decided   a0 a1 a2 a3 the chunk begins              a4 a5 a6 a7 ...

Made by `cadence foresee`, beside a checkpoint whose other files stay as they are:

    <checkpoint>/foresight.safetensors    net.*, scale [n], statistics (digest of the normalizer's)

Source: O. J. M. Smith, "Closer control of loops with dead time", Chem. Eng. Prog. 53, 1957: control
the plant as its model says it will be once the delay is over.

Differences from the paper: the model is learned and starts from each new observation, so that its
errors do not add up beyond the delay; no loop around it is needed. Decided actions are those that
were planned; what a governor will make of them is not known yet.

Shape legend: `To` observed steps, `d` decided actions, `Da` action size, `n` numbers of all fields.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from data.normalize import Normalizer
from data.types import Contract
from policy.agent import NotFiniteError
from policy.checkpoint import CheckpointError
from policy.durable import write_bytes
from policy.nets.dynamics import Dynamics

FILE = "foresight.safetensors"
NET, SCALE, STATISTICS = "net.", "scale", "statistics"

# (features [B, F], action before [B, Da], action [B, Da]) -> changes [B, n] in units of `scale`.
Changes = Callable[[Tensor, Tensor, Tensor], Tensor]


class Foresight:
    """Moves observations on by actions.

    Args:
        contract: of the policy.
        normalizer: of the policy, fitted.
        changes: how an observation changes in a tick.
        scale: [n] unit of each change; 0 for what never changes.

    Raises:
        ValueError: the contract has pictures, fields that are scaled per task, or actions relative
            to an observation.
    """

    def __init__(self, contract: Contract, normalizer: Normalizer, changes: Changes, scale: Tensor):
        check_foreseeable(contract)
        self._fields = contract.observation
        self._action_shape = contract.action.shape
        self._normalizer, self._changes, self._scale = normalizer, changes, scale

    @torch.no_grad()
    def __call__(
        self, history: Mapping[str, np.ndarray], decided: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What will have been observed once the decided actions are executed.

        Args:
            history: field name -> [To, ...], physical units, the last one being now.
            decided: [1 + d, Da] the last command, and the actions from now on.

        Returns:
            As `history`, `d` ticks later.

        Raises:
            NotFiniteError: the model foresees something that is not a number.
        """
        device = self._scale.device
        actions = torch.from_numpy(np.asarray(decided, np.float32)).to(device)
        seen = {
            name: torch.from_numpy(np.array(steps)).to(device) for name, steps in history.items()
        }
        steps = [{name: values[-1:] for name, values in seen.items()}]
        are_finite = [torch.ones((), dtype=torch.bool, device=device)]
        for before, action in itertools.pairwise(actions):
            change = self._change(steps[-1], before[None], action[None])
            are_finite.append(change.isfinite().all())
            steps.append(self._moved(steps[-1], change))
        foreseen = {
            name: torch.cat([values, *(step[name] for step in steps[1:])])[-len(values) :]
            for name, values in seen.items()
        }
        if not torch.stack(are_finite).all():
            raise NotFiniteError(
                f"what is foreseen after {len(actions) - 1} decided actions is not finite: check "
                f"the observation and {FILE} (cadence foresee)"
            )
        return {name: values.cpu().numpy() for name, values in foreseen.items()}

    def next(
        self, observation: Mapping[str, Tensor], before: Tensor, action: Tensor
    ) -> dict[str, Tensor]:
        """The observations one tick later, field name -> [B, ...].

        Args:
            observation: field name -> [B, ...], physical units.
            before: [B, Da] command of the tick before.
            action: [B, Da] command of this tick.
        """
        return self._moved(observation, self._change(observation, before, action))

    def _change(self, observation: Mapping[str, Tensor], before: Tensor, action: Tensor) -> Tensor:
        """[B, n] what an observation changes by in a tick, physical units."""
        features = torch.cat(
            [self._normalizer.normalize(name, observation[name]) for name in self._fields], dim=-1
        )
        before, action = (
            self._normalizer.normalize("action", a.reshape(-1, *self._action_shape))
            for a in (before, action)
        )
        return self._scale * self._changes(features, before, action)

    def _moved(self, observation: Mapping[str, Tensor], change: Tensor) -> dict[str, Tensor]:
        """Observations, field name -> [B, ...], and their change [B, n]."""
        parts = change.split([field.size for field in self._fields.values()], dim=-1)
        return {
            name: self._field_moved(name, observation[name], part)
            for name, part in zip(self._fields, parts, strict=True)
        }

    def _field_moved(self, name: str, values: Tensor, change: Tensor) -> Tensor:
        """Values [B, ...] moved on; angles stay in -pi..pi, whole numbers in their range."""
        field = self._fields[name]
        flat = values.reshape(len(values), field.size)
        if not values.is_floating_point():
            return _moved_whole(flat, change).reshape(values.shape)
        moved = flat + change
        angles = list(field.angles)
        if angles:
            moved = moved.clone()
            moved[:, angles] = wrapped(moved[:, angles])
        return moved.to(values.dtype).reshape(values.shape)


def check_foreseeable(contract: Contract) -> None:
    """Raise ValueError where observations are no numbers that a model can move on."""
    for name, field in contract.observation.items():
        if field.is_image:
            raise ValueError(
                f"{name!r} is a picture: only states can be foreseen; use another seam "
                f"(seam=none, blend, ensemble)"
            )
    if contract.scaled_per:
        raise ValueError(
            f"fields are scaled per {contract.scaled_per!r}: only a policy with one set of "
            f"statistics can be given foresight"
        )
    if contract.action.kind == "relative":
        raise ValueError(
            "actions are relative to an observation, and decided ones to an older one than what "
            "is foreseen: only absolute actions and changes (delta) can be foreseen"
        )


def check_has_delays(*, is_synchronous: bool) -> None:
    """Raise ValueError where no action is ever decided before its chunk: nothing to foresee."""
    if is_synchronous:
        raise ValueError(
            "seam.foresight is true, but the robot holds still until each chunk is there, so no "
            "action is decided beforehand and nothing would be foreseen: use seam=foresee, or "
            "seam.foresight=false"
        )


def _moved_whole(values: Tensor, change: Tensor) -> Tensor:
    """Whole numbers, or booleans, and their change rounded; they stay in what their type holds."""
    if values.dtype == torch.bool:
        return values.float() + change >= 0.5
    # Beyond 2**24 float32 does not hold whole numbers: only the change is rounded.
    bounds = torch.iinfo(values.dtype)
    return (values.long() + change.round().long()).clamp(bounds.min, bounds.max).to(values.dtype)


def wrapped(angle: Tensor) -> Tensor:
    """Angles in -pi..pi."""
    turn = 2 * math.pi
    return angle - turn * torch.round(angle / turn)


def save_foresight(folder: Path, net: Dynamics, scale: Tensor, *, normalizer: Normalizer) -> Path:
    """Write a model, made with a policy's normalizer, into its folder; returns the file."""
    tensors = {f"{NET}{name}": value for name, value in net.state_dict().items()}
    tensors[SCALE], tensors[STATISTICS] = scale, _digest(normalizer)
    write_bytes(folder / FILE, save({k: v.contiguous().cpu() for k, v in tensors.items()}))
    return folder / FILE


def load_foresight(
    folder: Path, contract: Contract, normalizer: Normalizer, *, device: torch.device | str = "cpu"
) -> Foresight:
    """The model beside a checkpoint.

    Args:
        folder: of the checkpoint.
        contract: of its policy.
        normalizer: of its policy.
        device: where it runs.

    Raises:
        CheckpointError: there is none, or it is damaged or for other fields.
        ValueError: such observations cannot be foreseen.
    """
    check_foreseeable(contract)
    file = folder / FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no {FILE}: make it with cadence foresee checkpoint={folder} "
            f"store.path=... (or use another seam)",
            code="C004",
            fix="run cadence foresee",
        )
    try:
        tensors = load(file.read_bytes())
        broken = [name for name, value in tensors.items() if not value.isfinite().all()]
        if broken:
            raise ValueError(f"{broken[0]} holds numbers that are not finite")
        scale = tensors.pop(SCALE)
        # The first files of this kind do not tell.
        if not torch.equal(tensors.pop(STATISTICS, _digest(normalizer)), _digest(normalizer)):
            raise ValueError("it was made with other statistics")
        state = {name.removeprefix(NET): value for name, value in tensors.items()}
        net = dynamics_for(contract, normalizer, **_sizes(state))
        net.load_state_dict(state)
        if scale.shape != (n_numbers(contract),):
            raise ValueError(f"{SCALE} has {len(scale)} numbers, not {n_numbers(contract)}")
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} is damaged or of another policy ({error})",
            code="C004",
            fix="run cadence foresee again",
        ) from error
    net.to(device).eval().requires_grad_(False)
    return Foresight(contract, normalizer.to(device), net, scale.to(device))


def dynamics_for(
    contract: Contract, normalizer: Normalizer, *, size: int, n_blocks: int
) -> Dynamics:
    """A network for the observations and actions of a contract."""
    return Dynamics(
        n_features=sum(normalizer.size(name) for name in contract.observation),
        n_actions=contract.action.size,
        n_changes=n_numbers(contract),
        size=size,
        n_blocks=n_blocks,
    )


def n_numbers(contract: Contract) -> int:
    """Numbers of an observation."""
    return sum(field.size for field in contract.observation.values())


def _digest(normalizer: Normalizer) -> Tensor:
    """[32] bytes of the digest of a normalizer's statistics."""
    return torch.tensor(list(bytes.fromhex(normalizer.digest())), dtype=torch.uint8)


def _sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of a network's layers, by its weights."""
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return {"size": len(state["first.bias"]), "n_blocks": len(blocks)}
