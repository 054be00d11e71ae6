"""The peer: the same U-Net in plain PyTorch, sampled by the loop of the `diffusers` library.

It is what Diffusion Policy (Chi et al. 2023) and LeRobot do at every chunk: normalise and encode
the observation, draw noise, `scheduler.set_timesteps`, then `scheduler.step` on what the network
predicts, call by call. It is at its best plain form: no gradients, one noise level for the whole
chunk as in the paper, whose FiLM is one matrix product, and no masks of given actions.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size, `L`
positions at one level of the U-Net.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policy.model import DiffusionPolicy
from policy.nets.unet1d import ResidualBlock, ResidualPair, UNet1d

INDICES = 100  # training indices of the noise schedule
SCHEDULE = {
    "num_train_timesteps": INDICES,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "prediction_type": "epsilon",
}
MISSING = "the peer needs the package diffusers: pip install 'cadence[dev]'"


def make_scheduler() -> Any:
    """The deterministic scheduler of `diffusers`, with Diffusion Policy's settings.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    except ImportError as error:
        raise ImportError(MISSING) from error
    return DDIMScheduler(**SCHEDULE)


class PublishedUNet(nn.Module):
    """A U-Net of ours as the paper has it: one noise level for all actions of a chunk."""

    def __init__(self, net: UNet1d):
        """A network that shares the weights of `net`, those of its FiLM aside.

        Args:
            net: for chunks of any size.
        """
        super().__init__()
        self.net = net
        blocks = [part for part in net.modules() if isinstance(part, ResidualBlock)]
        self.films = nn.ModuleList(map(_joined, blocks))
        self._film_of = dict(zip(blocks, self.films, strict=True))

    def forward(self, x: Tensor, k: Tensor, cond: Tensor) -> Tensor:
        """Predicted noise [B, Tp, Da].

        Args:
            x: [B, Tp, Da] noisy chunk.
            k: [B] training index.
            cond: [B, C] encoded observation.
        """
        net = self.net
        embedded = net.activate(torch.cat([net.noise_embed(k), cond], dim=-1))
        h = x.transpose(1, 2)  # [B, Da, Tp]
        skips = []
        for level, pair in enumerate(net.down):
            h = self._pair(pair, h, embedded)
            skips.append(h)
            if level < len(net.downsample):
                h = net.downsample[level](h)
        h = self._pair(net.middle, h, embedded)
        for pair, upsample in zip(net.up, net.upsample, strict=True):
            h = upsample(self._pair(pair, torch.cat([h, skips.pop()], dim=1), embedded))
        return net.out(net.last(h)).transpose(1, 2)

    def _pair(self, pair: nn.Module, h: Tensor, embedded: Tensor) -> Tensor:
        assert isinstance(pair, ResidualPair)
        return self._block(pair.second, self._block(pair.first, h, embedded), embedded)

    def _block(self, block: ResidualBlock, h: Tensor, embedded: Tensor) -> Tensor:
        film = self._film_of[block](embedded)[:, :, None]  # [B, 2 C, 1]
        scale, shift = film.chunk(2, dim=1)
        return block.second(torch.addcmul(shift, scale, block.first(h))) + block.skip(h)


def _joined(block: ResidualBlock) -> nn.Linear:
    """The FiLM of a block as one layer of [noise, condition]."""
    noise, cond = block.film.noise, block.film.cond
    layer = nn.Linear(noise.in_features + cond.in_features, cond.out_features)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([noise.weight, cond.weight], dim=1))
        layer.bias.copy_(cond.bias)
    return layer.to(cond.weight.device)


def sample(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    scheduler: Any,
    x: Tensor,
    cond: Tensor,
    *,
    calls: int,
) -> Tensor:
    """Clean chunks [B, Tp, Da] from noise.

    Args:
        model: (noisy chunk [B, Tp, Da], training index [B], cond [B, C]) -> predicted noise.
        scheduler: of `make_scheduler`.
        x: [B, Tp, Da] noise of variance 1.
        cond: [B, C] encoded observation.
        calls: of the model.
    """
    scheduler.set_timesteps(calls)
    for k in scheduler.timesteps:  # on the host, so that nothing waits for the device
        noise = model(x, torch.full((len(x),), int(k), device=x.device), cond)
        x = scheduler.step(noise, k, x).prev_sample
    return x


class Peer:
    """Chunks of actions in physical units, as the peer computes them."""

    def __init__(self, policy: DiffusionPolicy, *, device: torch.device):
        """A peer with a policy's weights.

        Args:
            policy: whose network is a `UNet1d`; it is left as it is.
            device: that it runs on.

        Raises:
            ImportError: `diffusers` is not installed.
            ValueError: the network is another one, which the peer does not have.
        """
        if not isinstance(policy.net, UNet1d):
            raise ValueError(
                f"the peer is the U-Net of Diffusion Policy, the network is "
                f"{type(policy.net).__name__}: it has no peer"
            )
        self._scheduler = make_scheduler()
        self._policy, self._device = policy, device
        self.net = PublishedUNet(policy.net).to(device).eval().requires_grad_(False)
        self._shape = (1, policy.horizons.pred, policy.contract.action.size)

    @torch.inference_mode()
    def chunk(self, observation: Mapping[str, Any], *, calls: int) -> Any:
        """Actions [1, Tp, ...] on the host from an observation there, field name -> [1, To, ...].

        Args:
            observation: in physical units, arrays.
            calls: of the network.
        """
        rows = {name: torch.from_numpy(v).to(self._device) for name, v in observation.items()}
        cond = self._policy.encoder(self._policy.features(rows))
        x = torch.randn(self._shape, device=self._device)
        x = sample(self.net, self._scheduler, x, cond, calls=calls)
        return self._policy.actions(x, rows).cpu().numpy()


def training_step(
    net: PublishedUNet, optimizer: torch.optim.Optimizer, scheduler: Any, *, bf16: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """A plain step of training: (chunks [B, Tp, Da], cond [B, C]) -> loss.

    Args:
        net: that is trained.
        optimizer: of its parameters.
        scheduler: of `make_scheduler`; adds the noise.
        bf16: whether the network runs in bfloat16.
    """

    def step(x0: Tensor, cond: Tensor) -> Tensor:
        noise = torch.randn_like(x0)
        k = torch.randint(INDICES, (len(x0),), device=x0.device)
        noisy = scheduler.add_noise(x0, noise, k)
        with torch.autocast(x0.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = F.mse_loss(net(noisy, k, cond).float(), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
