"""Opens an exported data set with lerobot itself and compares every value; not run by the suite.

    python tests/data/exporters/check_with_lerobot.py DATA_SET EXPECTED.npz [TOLERANCE]

EXPECTED.npz holds, for each feature, its values of all steps, and `episode_ends`. The tolerance is
for pictures, in levels of 255: 0 where they are kept without loss. Run it in an environment that
has lerobot 0.4; where torchvision is missing, see make_lerobot_files.py.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "importers"))


def main(root: str, expected: str, tolerance: float = 0.0) -> None:
    importlib.import_module("make_lerobot_files").stand_in_torchvision()
    lerobot = importlib.import_module("lerobot.datasets.lerobot_dataset")
    data_set = lerobot.LeRobotDataset("cadence/test", root=root, video_backend="pyav")
    with np.load(expected) as arrays:
        truth = {key: arrays[key] for key in arrays.files}
    ends = truth.pop("episode_ends")
    assert data_set.num_episodes == len(ends)
    assert len(data_set) == ends[-1]
    starts = np.concatenate([[0], ends[:-1]])
    largest = 0.0
    for index in range(len(data_set)):
        item = data_set[index]
        episode = int(np.searchsorted(ends, index, side="right"))
        assert item["episode_index"].item() == episode
        assert item["frame_index"].item() == index - starts[episode]
        assert isinstance(item["task"], str)
        for key, values in truth.items():
            value = item[key].numpy()
            if data_set.features[key]["dtype"] in ("image", "video"):
                apart = np.abs(value.transpose(1, 2, 0) * 255 - values[index]).max()
                largest = max(largest, float(apart))
            else:
                # LeRobot gives out numbers of 64 bits in lists as float32.
                wanted = values[index].astype(value.dtype).reshape(-1)
                assert np.array_equal(value.reshape(-1), wanted), (index, key)
    assert largest <= tolerance + 1e-4, largest  # Pictures are scaled to 0..1 in float32.
    stats = data_set.meta.stats
    lerobot.aggregate_stats([stats, stats])  # Raises where LeRobot minds their shapes.
    for key, values in truth.items():
        axes, shape = (0,), values.shape[1:] or (1,)
        if data_set.features[key]["dtype"] in ("image", "video"):
            # Grey has three equal channels there, and opacity is left out.
            values = np.repeat(values, 3, axis=3) if values.shape[3] == 1 else values[..., :3]
            values, axes, shape = values / 255, (0, 1, 2), (3, 1, 1)
        wide = values.astype(np.float64)
        for name in ("min", "max", "mean", "std"):
            found = getattr(wide, name)(axis=axes).reshape(shape)
            np.testing.assert_allclose(stats[key][name], found, rtol=1e-6, atol=1e-9)
    print(f"{len(data_set)} steps of {len(truth)} features are equal (pictures: {largest:.4f})")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:]))
