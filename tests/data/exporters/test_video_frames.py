"""Videos by times: the right frame, in any order of asking, and nothing where there is none."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data.video_frames import SEEK_FRAMES, VideoError, VideoFrames, VideoWriter

SIZE = (8, 10)
RATE = 10


def frames(n_frames: int) -> np.ndarray:
    """[n, H, W, 3], the number of each frame in its first point."""
    values = np.random.default_rng(0).integers(0, 256, (n_frames, *SIZE, 3), dtype=np.uint8)
    values[:, 0, 0, 0], values[:, 0, 0, 1] = np.arange(n_frames) % 256, np.arange(n_frames) // 256
    return values


def written(path: Path, n_frames: int = 30, rate: Fraction | int = RATE) -> Path:
    writer = VideoWriter(path, rate=rate, size=SIZE, codec="h264_lossless")
    writer.add(frames(n_frames))
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "video.mp4")


def test_every_frame_is_the_written_one(path):
    video = VideoFrames(path, size=SIZE)
    np.testing.assert_array_equal(video.at(np.arange(30) / RATE, tolerance=1e-4), frames(30))
    video.close()


def test_times_may_be_asked_for_in_any_order(tmp_path):
    n_frames = 3 * SEEK_FRAMES
    video = VideoFrames(written(tmp_path / "long.mp4", n_frames), size=SIZE)
    spans = [(0, 2), (2, 5), (7, 8), (n_frames - 3, n_frames), (0, 1), (500, 503), (502, 504)]
    for first, stop in [*spans, (503, 504), (400, 402)]:
        found = video.at(np.arange(first, stop) / RATE, tolerance=1e-4)
        np.testing.assert_array_equal(found, frames(n_frames)[first:stop])
    video.close()


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(1, 3), 240, Fraction(997, 13)])
def test_frames_are_at_their_times_at_any_rate(tmp_path, rate):
    video = VideoFrames(written(tmp_path / "rate.mp4", 20, rate), size=SIZE)
    times = np.arange(20) / float(rate)
    np.testing.assert_array_equal(video.at(times, tolerance=1e-4), frames(20))
    video.close()


def test_a_time_without_a_frame_is_refused(path):
    video = VideoFrames(path, size=SIZE)
    with pytest.raises(VideoError, match=r"no frame at 0.0500 s, the next is at 0.1000 s"):
        video.at(np.array([0.05]), tolerance=1e-4)
    assert video.at(np.array([0.06]), tolerance=0.05)[0, 0, 0, 0] == 1
    with pytest.raises(VideoError, match=r"ends at 2.9000 s, but a frame at 3.0000 s is wanted"):
        video.at(np.array([2.9, 3.0]), tolerance=1e-4)
    video.close()


def test_what_is_no_video_is_refused(tmp_path, path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="cannot be opened as a video"):
        VideoFrames(tmp_path / "text.mp4", size=SIZE)
    with pytest.raises(VideoError, match="has frames of 8 x 10 points, the data set says 8 x 9"):
        VideoFrames(path, size=(8, 9))


def test_a_video_without_pictures_is_refused(tmp_path):
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(VideoError, match="holds no pictures"):
        VideoFrames(tmp_path / "sound.mp4", size=SIZE)


def test_damage_is_refused_or_harmless(path):
    """A flipped byte in what every frame depends on is noticed."""
    content = path.read_bytes()
    n_refused = 0
    for place in range(40, len(content), len(content) // 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            video = VideoFrames(path, size=SIZE)
            video.at(np.arange(30) / RATE, tolerance=1e-4)
        except VideoError:
            n_refused += 1
    assert n_refused > 0


@pytest.mark.parametrize(("size", "codec"), [((7, 8), "h264"), ((62, 64), "av1")])
def test_sizes_that_a_codec_cannot_are_refused(tmp_path, size, codec):
    with pytest.raises(VideoError, match=f"cannot be written as {codec}, which needs even numbers"):
        VideoWriter(tmp_path / "video.mp4", rate=RATE, size=size, codec=codec)


def test_without_pyav_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[lerobot\]'"):
        VideoFrames(path, size=SIZE)
