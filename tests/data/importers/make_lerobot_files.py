"""Writes the LeRobot data sets under files/, with lerobot itself; not run by the suite.

    python tests/data/importers/make_lerobot_files.py     # in an environment that has lerobot

lerobot 0.4.4 writes format v3.0, lerobot 0.3.3 writes v2.1. Where torchvision is missing, a
stand-in gives lerobot the four names of it that it needs to write. What the data sets hold is
computed by `state`, `action`, `picture` and `colour`, which the tests use as the truth.
"""

import importlib
import importlib.util
import shutil
import sys
import types
from pathlib import Path

import numpy as np

FILES = Path(__file__).resolve().parent / "files"
FPS = 10
LENGTHS = (4, 7, 3)
TASKS = ("reach", "push", "reach")
HEIGHT, WIDTH = 12, 16  # of a picture kept as PNG
VIDEO_HEIGHT, VIDEO_WIDTH = 64, 96
NAMES = {"state": ["x", "y", "angle"], "action": ["x", "y"]}


def state(episode: int, step: int) -> np.ndarray:
    return np.array([episode + 0.1, step / 3, -1.5 * step], np.float32)


def action(episode: int, step: int) -> np.ndarray:
    return np.array([10 * episode + step, np.sqrt(step + 2)], np.float32)


def picture(episode: int, step: int) -> np.ndarray:
    """[HEIGHT, WIDTH, 3] uint8, another one in every step."""
    row, column, channel = np.indices((HEIGHT, WIDTH, 3))
    return ((40 * episode + 11 * step + 3 * row + 5 * column + 70 * channel) % 256).astype(np.uint8)


def colour(episode: int, step: int) -> np.ndarray:
    """[3] uint8, what all of a video's frame has."""
    return np.array([40 + 60 * episode, 30 + 25 * step, 200 - 20 * step], np.uint8)


def video_frame(episode: int, step: int) -> np.ndarray:
    return np.broadcast_to(colour(episode, step), (VIDEO_HEIGHT, VIDEO_WIDTH, 3)).copy()


def stand_in_torchvision() -> None:
    """Let lerobot be imported without torchvision; pictures become tensors all the same."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    import torch

    def to_tensor(image: object) -> "torch.Tensor":
        values = np.atleast_3d(np.asarray(image))
        return torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 255

    class VideoReader:
        """Frames of a video in order, from a time on; by PyAV."""

        def __init__(self, path: str, stream: str):
            import av

            self.container = av.open(path)
            self._first = 0.0

        def seek(self, time: float, *, keyframes_only: bool) -> None:
            self._first = time

        def __iter__(self):
            for frame in self.container.decode(video=0):
                if frame.time >= self._first - 0.5:
                    rgb = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                    yield {"pts": frame.time, "data": rgb}

    contents: dict[str, dict[str, object]] = {
        "torchvision.io": {"VideoReader": VideoReader},
        "torchvision.transforms.v2.functional": {},
        "torchvision.transforms.v2": {"Transform": object},
        "torchvision.transforms": {"ToTensor": lambda: to_tensor},
        "torchvision": {"set_video_backend": lambda name: None},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        vars(module).update(content)
        sys.modules[name] = module
    for name in list(contents)[:-1]:
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, sys.modules[name])


def features(kind: str) -> dict:
    chosen = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": NAMES["state"]},
        "action": {"dtype": "float32", "shape": (2,), "names": NAMES["action"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    names = ["height", "width", "channels"]
    if kind == "images":
        shape = (HEIGHT, WIDTH, 3)
        chosen["observation.images.top"] = {"dtype": "image", "shape": shape, "names": names}
    if kind.startswith("video"):
        shape = (VIDEO_HEIGHT, VIDEO_WIDTH, 3)
        chosen["observation.images.top"] = {"dtype": "video", "shape": shape, "names": names}
    return chosen


def write(place: Path, kind: str) -> None:
    lerobot_dataset = importlib.import_module("lerobot.datasets.lerobot_dataset")
    settings = {}
    if kind == "video_h264":
        if lerobot_dataset.CODEBASE_VERSION == "v3.0":
            settings["vcodec"] = "h264"
        else:
            return
    if place.exists():
        shutil.rmtree(place)
    data_set = lerobot_dataset.LeRobotDataset.create(
        repo_id="cadence/test",
        fps=FPS,
        features=features(kind),
        root=place,
        robot_type="none",
        use_videos=kind.startswith("video"),
        video_backend="pyav",
        **settings,
    )
    is_v3 = lerobot_dataset.CODEBASE_VERSION == "v3.0"
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            frame = {
                "observation.state": state(episode, step),
                "action": action(episode, step),
                "next.reward": np.array([step / 10], np.float32),
                "next.success": np.array([episode == 1 and step == length - 1]),
            }
            if kind == "images":
                frame["observation.images.top"] = picture(episode, step)
            if kind.startswith("video"):
                frame["observation.images.top"] = video_frame(episode, step)
            if is_v3:
                data_set.add_frame({**frame, "task": TASKS[episode]})
            else:
                data_set.add_frame(frame, task=TASKS[episode])
        data_set.save_episode()
    if is_v3:
        data_set.finalize()
    shutil.rmtree(place / "images", ignore_errors=True)


def main() -> None:
    stand_in_torchvision()
    lerobot_dataset = importlib.import_module("lerobot.datasets.lerobot_dataset")
    version = lerobot_dataset.CODEBASE_VERSION.replace(".", "").replace("v30", "v3")
    for kind in ("state", "images", "video", "video_h264"):
        write(FILES / f"lerobot_{version}_{kind}", kind)


if __name__ == "__main__":
    main()
