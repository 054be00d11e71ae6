"""Make a checkpoint of a published Diffusion Policy, so that it runs with every sampler here.

    cadence import_policy src=latest.ckpt control_dt=0.1 unit=px
    cadence import_policy "src='epoch=0500-test_mean_score=0.9.ckpt'" control_dt=0.1
    cadence evaluate checkpoint=... env=... sampler.grid.sigma_min=0.0252 sampler.descent.clip=1

Takes state-based U-Net policies that see observations as a global condition, predict the noise of
the cosine schedule with 100 indices, and have averaged (EMA) weights. No code of the file is run.

Where it differs from a checkpoint trained here:

1. Its chunk begins with the action for the first observation (To - 1 steps ago), or one step
   earlier where it was trained without `oa_step_convention`. This is kept as `horizons.past`; the
   actions that are executed begin with the one for now, as in the original.
2. It was trained with one noise level for all actions. Samplers that mix levels (streaming,
   committed prefixes) ask it for something new; the others do not.
3. An error in the noise is sigma times as large in an action: sampler.descent.clip=1 keeps actions
   within the range of the demonstrations, as the original does.
4. Its lowest noise level is 0.0251, and a sampler that goes lower is refused. sampler=ddpm_96 ends
   there; ddim_8 and other grids need sampler.grid.sigma_min=0.0252, and rti, rtc and streaming
   sampler.first.grid.sigma_min=0.0252 sampler.sigma_min=0.0252.
5. Of its 16 actions one lies in the past (To = 2), so that 8 do not fit twice into the others:
   sampler=streaming needs action_horizon=7 or less.
6. It observes one field, "state", with the elements in the order of its training data. Training
   cannot go on from it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.build import assemble
from policy.checkpoint_save import save
from policy.diffusion.schedule import cosine_vp_sigmas
from policy.diffusion_policy_layout import N_GROUPS, ForeignPolicy, from_diffusion_policy
from policy.entry import entry, out_dir
from policy.fingerprint import fingerprint
from policy.foreign_checkpoint import load_foreign
from policy.model import DiffusionPolicy

WEIGHTS = "ema_model"
N_INDICES = 100

# What the configuration of a file must say, where it says anything.
REQUIRED = {
    "policy.noise_scheduler.prediction_type": "epsilon",
    "policy.noise_scheduler.beta_schedule": "squaredcos_cap_v2",
    "policy.noise_scheduler.num_train_timesteps": N_INDICES,
    "policy.model.n_groups": N_GROUPS,
    "policy.pred_action_steps_only": False,
}


def run(cfg: DictConfig) -> Path:
    """Import as configured; returns the folder that holds the checkpoint.

    Raises:
        ValueError: a setting is impossible or contradicts the file, or the file cannot be used.
    """
    _check_numbers(cfg)
    src = Path(str(cfg.src))
    if cfg.out is not None and (Path(str(cfg.out)) / "checkpoints").exists():
        raise ValueError(f"out={cfg.out} holds checkpoints already: choose another folder")
    foreign = load_foreign(src, weights=WEIGHTS)
    try:
        unsaid = check_config(foreign.config)
        said = _said(foreign.config, "policy.n_obs_steps", int)
        obs_horizon = said if cfg.obs_horizon is None else cfg.obs_horizon
        found = from_diffusion_policy(foreign.tensors, obs_horizon=obs_horizon)
        horizons = _horizons(foreign.config, found, cfg)
        config = policy_config(found)
        policy = build(found, config, horizons, cfg)
    except ValueError as error:
        raise ValueError(f"{src}: {error}") from error
    out = out_dir(cfg, "import_policy")
    place = save(
        out,
        step=0,
        policy=policy,
        contract=policy.contract,
        horizons=horizons,
        config={**config, "imported": {"src": str(src), "weights": WEIGHTS}},
        trainer={},
        seconds=0.0,
        store_digest="",
        versions=fingerprint(),
        keep=1,
    )
    print(
        f"policy: observes {horizons.obs} x {found.obs_size}, predicts {horizons.pred} x "
        f"{found.action_size}, the first {horizons.past} in the past; executes {horizons.action}"
    )
    if unsaid:
        print(f"the file does not say, and is taken to agree with: {', '.join(unsaid)}")
    print(f"checkpoint (ema weights): {place}")
    return out


def check_config(config: Mapping[str, Any]) -> list[str]:
    """What the configuration of a file leaves unsaid.

    Args:
        config: nested plain values.

    Raises:
        ValueError: it says that the policy is of a kind that cannot be imported.
    """
    unsaid = []
    for key, required in REQUIRED.items():
        value = _said(config, key, type(required))
        if value is None:
            unsaid.append(f"{key}={required}")
        elif value != required:
            raise ValueError(f"{key} is {value}, only {required} can be imported")
    return unsaid


def policy_config(found: ForeignPolicy) -> dict[str, Any]:
    """The configuration that our checkpoint is built again from."""
    sigmas = cosine_vp_sigmas(N_INDICES)
    return {
        "net": {
            "_target_": "policy.nets.unet1d.UNet1d",
            "_partial_": True,
            "channels": list(found.channels),
            "kernel_size": found.kernel_size,
            "n_groups": N_GROUPS,
            "noise_embed_size": found.noise_embed_size,
            "activation": "mish",
        },
        "encoder": {
            "_target_": "policy.nets.encoders.StateEncoder",
            "_partial_": True,
            "hidden": None,
        },
        "precond": {"_target_": "policy.diffusion.precond.Eps", "n_indices": N_INDICES},
        # Samplers learn from here which levels were trained.
        "loss": {
            "corruption": {
                "density": {"sigma_min": float(sigmas[0]), "sigma_max": float(sigmas[-1])}
            }
        },
    }


def build(
    found: ForeignPolicy, config: Mapping[str, Any], horizons: Horizons, cfg: DictConfig
) -> DiffusionPolicy:
    """The policy with the weights and statistics that were found.

    Raises:
        ValueError: they do not fit each other, or are not finite.
    """
    contract = Contract(
        observation={"state": Field(shape=(found.obs_size,), unit=str(cfg.unit))},
        action=Field(shape=(found.action_size,), unit=str(cfg.unit)),
        control_dt=float(cfg.control_dt),
        task=str(cfg.task),
    )
    broken = [name for name, tensor in found.net.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"weights are not finite: {', '.join(broken)}")
    normalizer = Normalizer(contract)
    normalizer.load_state_dict(found.normalizer)
    parts = OmegaConf.create(dict(config))
    policy = assemble(parts, contract, horizons, normalizer)
    try:
        policy.get_submodule("net").load_state_dict(found.net)
    except RuntimeError as error:
        complaint = " ".join(str(error).split())
        raise ValueError(f"the weights contradict each other: {complaint[:300]}") from error
    return policy


def _check_numbers(cfg: DictConfig) -> None:
    """Raise ValueError where a setting whose default does not tell its kind is of another."""
    if isinstance(cfg.control_dt, bool) or not isinstance(cfg.control_dt, int | float):
        raise ValueError(f"control_dt is {cfg.control_dt!r}, it must be a number [s]")
    if cfg.obs_horizon is not None and type(cfg.obs_horizon) is not int:
        raise ValueError(f"obs_horizon is {cfg.obs_horizon!r}, it must be a whole number or null")


def _horizons(config: Mapping[str, Any], found: ForeignPolicy, cfg: DictConfig) -> Horizons:
    """Of the policy; its chunk begins before now."""
    trained = _said(config, "policy.horizon", int)
    if trained is not None and trained != cfg.pred_horizon:
        raise ValueError(
            f"pred_horizon is {cfg.pred_horizon}, the policy was trained with {trained}: "
            f"give pred_horizon={trained}"
        )
    is_aligned = _said(config, "policy.oa_step_convention", bool)
    past = found.obs_horizon if is_aligned is False else found.obs_horizon - 1
    return Horizons(
        obs=found.obs_horizon, pred=cfg.pred_horizon, action=cfg.action_horizon, past=past
    )


def _said(config: Mapping[str, Any], key: str, kind: type) -> Any:
    """The value at a dotted key, or None where there is none of that kind."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if type(node) is kind else None


def main() -> None:
    """Entry point."""
    entry("import_policy", run)


if __name__ == "__main__":
    main()
