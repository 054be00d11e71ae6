"""DiffusionPolicy: encoder, network, parameterisation and normaliser as one denoiser.

It neither samples nor trains; samplers and the loss take it as `policy.types.Denoiser`.

Shape legend: `B` batch, `To Tp` observed and predicted steps, `Da` action size, `C` condition size.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from torch import Tensor, nn

from data.normalize import Normalizer
from data.types import Contract, Horizons
from policy.diffusion.precond import Preconditioning
from policy.types import Denoiser


class DiffusionPolicy(nn.Module):
    """Predicts the clean chunk of actions from a noisy one and an observation."""

    def __init__(
        self,
        encoder: nn.Module,
        net: nn.Module,
        preconditioning: Preconditioning,
        normalizer: Normalizer,
        contract: Contract,
        horizons: Horizons,
    ):
        """A policy.

        Args:
            encoder: field name -> [B, To, ...] normalised features, to cond [B, C].
            net: x [B, Tp, Da], c_noise [B, Tp], cond [B, C] -> raw output [B, Tp, Da].
            preconditioning: what the raw output means.
            normalizer: between physical units and the network's scale.
            contract: meaning of observations and actions.
            horizons: steps seen, predicted and executed.
        """
        super().__init__()
        self.encoder, self.net, self.normalizer = encoder, net, normalizer
        self.preconditioning = preconditioning
        self.contract, self.horizons = contract, horizons

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """x0_hat [B, Tp, Da]; clean actions come back untouched.

        Args:
            x: [B, Tp, Da] noisy chunk in the network's scale.
            sigma: [B, Tp] >= 0.
            cond: [B, C] of `encode`.
        """
        c = self.preconditioning(sigma)
        raw = self.net(c.c_in[..., None] * x, c.c_noise, cond)
        return c.c_skip[..., None] * x + c.c_out[..., None] * raw

    def at(self, sigma: Tensor) -> Denoiser:
        """The denoiser for chunks at given levels; what depends on them alone is computed once.

        A network may have `at(c_noise [Tp])`, which gives `f(x, cond)`; others are called as usual.
        The denoiser ignores the levels that it is called with.

        Args:
            sigma: [Tp] >= 0, the same in all samples.
        """
        c = self.preconditioning(sigma)
        net = getattr(self.net, "at", partial(_at, self.net))(c.c_noise)

        def denoise(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
            raw = net(c.c_in[:, None] * x, cond)
            return c.c_skip[:, None] * x + c.c_out[:, None] * raw

        return denoise

    def penalty(self, sigma: Tensor, cond: Tensor) -> Tensor:
        """What the network asks for beside a small error in training, a scalar; mostly 0.

        A network may have `penalty(c_noise [B, Tp], cond [B, C])`, such as the balance of a
        mixture's load.

        Args:
            sigma: [B, Tp] >= 0, levels of the batch.
            cond: [B, C] of `encode`.
        """
        penalty = getattr(self.net, "penalty", None)
        c_noise = self.preconditioning(sigma).c_noise
        return c_noise.new_zeros(()) if penalty is None else penalty(c_noise, cond)

    def encode(self, observation: Mapping[str, Tensor], *, with_goal: bool = True) -> Tensor:
        """Condition [B, C] of an observation; once per chunk. For errors see `features`.

        Args:
            observation: field name -> [B, To, ...] in physical units; further fields are ignored.
            with_goal: whether the goal is looked at.
        """
        cond = self.encoder(self.features(observation))
        return cond if with_goal else self.without_goal(cond)

    def without_goal(self, cond: Tensor) -> Tensor:
        """The condition [B, C] of `encode` less its goal.

        Raises:
            ValueError: the policy has no goals.
        """
        without_goal = getattr(self.encoder, "without_goal", None)
        if without_goal is None:
            raise ValueError(
                f"the policy has no goal to leave out: its encoder, {type(self.encoder).__name__}, "
                f"lacks without_goal(cond); train with encoder=goal"
            )
        return without_goal(cond)

    @property
    def has_goals(self) -> bool:
        """Whether the condition tells a goal that can be left out, as training did at times."""
        dropout = getattr(self.encoder, "dropout", 0.0)
        return hasattr(self.encoder, "without_goal") and dropout > 0

    def features(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Field name -> normalised features [B, To, F], of an image [B, To, H, W, C].

        Args:
            observation: field name -> [B, To, ...] in physical units; further fields are ignored.

        Raises:
            KeyError: a field is missing.
            ValueError: a field has another shape than [B, To, ...].
        """
        for name, field in self.contract.observation.items():
            if name not in observation:
                raise KeyError(
                    f"the observation lacks {name!r}: the policy needs "
                    f"{sorted(self.contract.observation)}, given are {sorted(observation)}"
                )
            wanted = (self.horizons.obs, *field.shape)
            if tuple(observation[name].shape[1:]) != wanted:
                raise ValueError(
                    f"observation {name!r} has shape {tuple(observation[name].shape)}, the policy "
                    f"needs [batch, {', '.join(map(str, wanted))}]: {self.horizons.obs} steps (obs "
                    f"horizon), the newest last"
                )
        sets = self.normalizer.sets_of(observation)
        return {
            name: self.normalizer.normalize(name, observation[name], sets)
            for name in self.contract.observation
        }

    def chunk(self, actions: Tensor, observation: Mapping[str, Tensor] | None = None) -> Tensor:
        """Chunks [B, Tp, Da] in the network's scale from actions [B, Tp, ...] in physical units.

        Args:
            actions: in physical units.
            observation: what they answer, field name -> [B, To, ...]. Needed where it tells by
                which statistics actions are scaled (`told`); its other fields never are.

        Raises:
            KeyError: the observation lacks the field that tells it.
            ValueError: there is no observation and it is needed, or a shape is wrong.
        """
        return self.normalizer.normalize("action", actions, self._sets(observation))

    def actions(self, x: Tensor, observation: Mapping[str, Tensor] | None = None) -> Tensor:
        """Actions [B, Tp, ...] in physical units from chunks [B, Tp, Da] in the network's scale.

        Args:
            x: in the network's scale.
            observation: what they answer, for the rest and for errors see `chunk`.
        """
        return self.normalizer.unnormalize("action", x, self._sets(observation))

    def told(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What of an observation tells by which statistics it is scaled: one field, or none.

        Args:
            observation: field name -> [B, To, ...].
        """
        name = self.contract.scaled_per
        return {name: observation[name]} if name else {}

    def _sets(self, observation: Mapping[str, Tensor] | None) -> Tensor | None:
        return None if observation is None else self.normalizer.sets_of(observation)


def _at(net: nn.Module, c_noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A network f(x [B, Tp, Da], cond [B, C]) at given levels [Tp]."""
    return lambda x, cond: net(x, c_noise.expand(len(x), -1), cond)
