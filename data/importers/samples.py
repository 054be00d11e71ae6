"""Small made-up data sets of each format, written by the format's own library and not by ours.

Laid out as the published code writes them; used to test the importers and to fuzz them.

Shape legend: `L` steps of an episode.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from data.importers.d4rl import D4RL
from data.importers.diffusion_policy import DiffusionPolicy
from data.importers.dppo import DPPO
from data.importers.folder import Folder
from data.importers.importer import Importer
from data.importers.minari import Minari
from data.importers.robomimic import Robomimic

LENGTHS = (4, 3, 6)
UNITS = {"unit": "m"}
ACTION = {"unit": "m", "kind": "absolute", "rotation": "none"}
ROBOSUITE = {
    "env_name": "PickPlaceCan",
    "env_version": "1.4.1",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {"type": "OSC_POSE", "control_delta": True, "input_max": 1},
        "robots": ["Panda"],
    },
}

Episodes = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Sample:
    """A format's small data set.

    Args:
        write: puts it into a folder, given the episodes; returns its path.
        open: makes the importer of what was written, told all that the format leaves open; it can
            be pickled.
        names: field of the importer -> what it is called in `episodes`, where that differs.
        stored: name of an array in the file -> field, where that differs.
        has_pictures: whether episodes have them.
        is_unlisted: whether episodes are files of which there is no list.
    """

    write: Callable[[Path, Episodes], Path]
    open: Callable[[Path], Importer]
    names: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    has_pictures: bool = True
    is_unlisted: bool = False

    def expected(self, episode: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """An episode as the importer is to give it."""
        names = {key: name for name, key in self.names.items()}
        return {
            names.get(key, key): values
            for key, values in episode.items()
            if self.has_pictures or key != "camera"
        }


def episodes(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> Episodes:
    """Episodes of a state [L, 2], an action [L, 2] and a camera [L, 8, 8, 3]."""
    rng = np.random.default_rng(seed)
    return [
        {
            "state": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            "camera": rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8),
            "action": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        }
        for length in lengths
    ]


def write_diffusion_policy(home: Path, made: Episodes) -> Path:
    """A replay buffer with the settings of the published Push-T one, by zarr."""
    import numcodecs
    import zarr

    path = home / "replay.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    compressor = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    arrays = {
        f"data/{name}": np.concatenate([episode[name] for episode in made]).astype(np.float32)
        for name in made[0]
    }
    arrays["meta/episode_ends"] = np.cumsum([len(episode["action"]) for episode in made])
    for key, values in arrays.items():
        group.create_array(
            key,
            data=values,
            chunks=(max(5, len(values) // 20), *values.shape[1:]),
            compressors=compressor,
            config={"write_empty_chunks": True},
        )
    return path


def write_robomimic(home: Path, made: Episodes, *, libver: str | None = None) -> Path:
    """A file as robomimic's dataset_states_to_obs.py makes it, by h5py."""
    import h5py

    path = home / "image.hdf5"
    with h5py.File(path, "w", libver=libver) as file:
        group = file.create_group("data")
        for index, episode in enumerate(made):
            demo = group.create_group(f"demo_{index}")
            length = len(episode["action"])
            demo.create_dataset("actions", data=episode["action"].astype(np.float64))
            demo.create_dataset("states", data=np.zeros((length, 4)))
            demo.create_dataset("rewards", data=np.eye(length)[-1] * (index != 1))
            demo.create_dataset("dones", data=np.eye(length, dtype=np.int64)[-1])
            demo.create_dataset("obs/eef_pos", data=episode["state"].astype(np.float64))
            demo.create_dataset("obs/agentview_image", data=episode["camera"], compression="gzip")
            demo.attrs["num_samples"] = length
            demo.attrs["model_file"] = "<mujoco/>"
        group.attrs["total"] = sum(len(episode["action"]) for episode in made)
        group.attrs["env_args"] = json.dumps(ROBOSUITE, indent=4)
        for mask, indices in (("train", range(len(made) - 1)), ("valid", [len(made) - 1])):
            file[f"mask/{mask}"] = np.array([f"demo_{index}" for index in indices], dtype="S")
    return path


def write_d4rl(home: Path, made: Episodes) -> Path:
    """A file as D4RL's generation scripts make it, by h5py; the last episode is cut off."""
    import h5py

    path = home / "hopper.hdf5"
    flat = {key: np.concatenate([episode[key] for episode in made]) for key in ("state", "action")}
    ends = np.cumsum([len(episode["action"]) for episode in made]) - 1
    terminals, timeouts = np.zeros((2, ends[-1] + 1), bool)
    terminals[ends[:-1:2]] = True
    timeouts[ends[1:-1:2]] = True
    with h5py.File(path, "w") as file:
        for key, values in (
            ("observations", flat["state"]),
            ("actions", flat["action"]),
            ("rewards", np.ones(len(terminals), np.float32)),
            ("terminals", terminals),
            ("timeouts", timeouts),
            ("infos/qpos", flat["state"].astype(np.float64)),
        ):
            file.create_dataset(key, data=values, compression="gzip")
        file.create_dataset("metadata/algorithm", data=np.bytes_("SAC"))
    return path


def write_minari(home: Path, made: Episodes, *, jpeg: bool = False) -> Path:
    """A data set, by minari itself; an observation more than actions, in a nested dictionary."""
    import gymnasium as gym
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for index, episode in enumerate(made):
        length = len(episode["action"])
        longer = {key: np.concatenate([v, v[-1:]]) for key, v in episode.items()}
        buffers.append(
            EpisodeBuffer(
                id=index,
                seed=100 + index,
                observations={
                    "camera": longer["camera"],
                    "robot": {"arm": longer["state"].astype(np.float64)},
                },
                actions=list(episode["action"]),
                rewards=[0.0] * length,
                terminations=[False] * (length - 1) + [index != 1],
                truncations=[False] * (length - 1) + [index == 1],
                infos={"success": (np.arange(length + 1) == length) & (index != 1)},
            )
        )
    box = gym.spaces.Box
    space = gym.spaces.Dict(
        {
            "camera": box(0, 255, made[0]["camera"].shape[1:], np.uint8),
            "robot": gym.spaces.Dict({"arm": box(-2, 2, (2,), np.float64)}),
        }
    )
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(home)  # The only way to tell the library.
    try:
        with warnings.catch_warnings():  # of descriptions that are left out
            warnings.simplefilter("ignore", UserWarning)
            minari.create_dataset_from_buffers(
                "cadence/sample-v0",
                buffer=buffers,
                observation_space=space,
                action_space=box(-1, 1, (2,), np.float32),
                jpeg_encoding=jpeg,
            )
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
    return home / "cadence" / "sample-v0"


def write_dppo(home: Path, made: Episodes) -> Path:
    """A file as DPPO's process_robomimic_dataset.py makes it, by numpy."""
    path = home / "train.npz"
    flat = {key: np.concatenate([episode[key] for episode in made]) for key in made[0]}
    bounds = {"obs": flat["state"].astype(np.float64), "action": flat["action"].astype(np.float64)}
    limits = {f"{k}_min": v.min(0) for k, v in bounds.items()}
    limits |= {f"{k}_max": v.max(0) for k, v in bounds.items()}
    scaled = {
        key: 2 * (v - limits[f"{key}_min"]) / (limits[f"{key}_max"] - limits[f"{key}_min"] + 1e-6)
        - 1
        for key, v in bounds.items()
    }
    np.savez_compressed(
        path,
        states=scaled["obs"],
        actions=scaled["action"],
        rewards=np.zeros(len(flat["state"])),
        terminals=np.zeros(len(flat["state"]), bool),
        images=flat["camera"].transpose(0, 3, 1, 2),
        traj_lengths=np.array([len(episode["action"]) for episode in made]),
    )
    np.savez_compressed(home / "normalization.npz", **limits)
    return path


def write_npz_folder(home: Path, made: Episodes) -> Path:
    """An npz for each episode, by numpy."""
    path = home / "episodes"
    path.mkdir()
    for index, episode in enumerate(made):
        single = {"success": np.array(index != 1), "seed": np.array(index)}
        np.savez(path / f"episode_{index}.npz", **episode, **single)  # pyright: ignore[reportArgumentType]
    return path


def write_csv_folder(home: Path, made: Episodes) -> Path:
    """A csv for each episode, by numpy."""
    path = home / "episodes"
    path.mkdir()
    for index, episode in enumerate(made):
        table = np.concatenate([episode["state"], episode["action"]], axis=1)
        header = "state_0,state_1,action_0,action_1"
        np.savetxt(
            path / f"run-{index}.csv", table, fmt="%.9g", delimiter=",", header=header, comments=""
        )
    return path


SAMPLES = {
    "diffusion_policy": Sample(
        write_diffusion_policy,
        partial(DiffusionPolicy, fields={"state": UNITS, "action": ACTION}, control_dt=0.1),
    ),
    "robomimic": Sample(
        write_robomimic,
        partial(Robomimic, fields={"eef_pos": UNITS, "action": {"unit": "1", "rotation": "none"}}),
        names={"eef_pos": "state", "agentview_image": "camera"},
        stored={"actions": "action"},
    ),
    "d4rl": Sample(
        write_d4rl,
        partial(D4RL, fields={"state": UNITS, "action": ACTION}, control_dt=0.1),
        stored={"observations": "state", "actions": "action", "terminals": "", "timeouts": ""},
        has_pictures=False,
    ),
    "minari": Sample(
        write_minari,
        partial(Minari, fields={"robot_arm": UNITS, "action": ACTION}, control_dt=0.1),
        names={"robot_arm": "state"},
        stored={"actions": "action", "arm": "robot_arm"},
    ),
    "dppo": Sample(
        write_dppo,
        partial(DPPO, fields={"state": UNITS, "action": ACTION}, control_dt=0.1),
        names={"image": "camera"},
    ),
    "npz": Sample(
        write_npz_folder,
        partial(Folder, fields={"state": UNITS, "action": ACTION}, control_dt=0.1),
        is_unlisted=True,
    ),
    "csv": Sample(
        write_csv_folder,
        partial(Folder, fields={"state": UNITS, "action": ACTION}, control_dt=0.1),
        has_pictures=False,
        is_unlisted=True,
    ),
}
