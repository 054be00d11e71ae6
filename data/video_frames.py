"""Frames of a video by their times, read forward, and videos written frame by frame.

Shape legend: `n` frames, `H W` height and width.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

Codec = Literal["h264", "h264_lossless", "av1"]
# What is kept of a frame: h264 and av1 lose detail and half of the colours' resolution.
CODECS: dict[Codec, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "yuv420p", {"crf": "20", "bf": "0"}),
    "h264_lossless": ("libx264rgb", "rgb24", {"qp": "0", "preset": "fast", "bf": "0"}),
    "av1": ("libsvtav1", "yuv420p", {"crf": "30", "preset": "8"}),
}
KEY_FRAME_STEPS = 2  # Few, so that a policy's random reads decode little; LeRobot's choice too.
SEEK_FRAMES = 200  # Up to so many are decoded in passing; farther on, the video is entered anew.
EXTRA = "install it with: pip install -e '.[lerobot]'"


class VideoError(ValueError):
    """A video that does not hold the frames it should."""


class VideoFrames:
    """The frames of one video; close it after use.

    Args:
        path: of the video.
        size: height and width that every frame must have.

    Raises:
        VideoError: it is not a video, or of another size.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: Path, *, size: tuple[int, int]):
        self.path, self._size = path, size
        self._av = _pyav()
        try:
            self._container: Any = self._av.open(str(path))
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path} cannot be opened as a video ({error})") from error
        try:
            self._open_stream()
        except BaseException:
            self._container.close()
            raise

    def _open_stream(self) -> None:
        if not self._container.streams.video:
            raise VideoError(f"{self.path} holds no pictures")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            raise VideoError(f"{self.path} is damaged, or of a codec that PyAV does not know")
        self._stream.codec_context.options = {"err_detect": "explode"}
        self._check_size(self._stream.codec_context)
        self._frames: Iterator[Any] = iter(self._container.decode(self._stream))
        self._frame: Any = None  # decoded and not passed by
        self._last: float | None = None  # time of the last frame that was decoded
        rate = self._stream.average_rate
        self._near = SEEK_FRAMES / float(rate) if rate else 1.0

    def _check_size(self, what: Any) -> None:
        if (what.height, what.width) != self._size:
            raise VideoError(
                f"{self.path} has frames of {what.height} x {what.width} points, "
                f"the data set says {self._size[0]} x {self._size[1]}"
            )

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def at(self, times: np.ndarray, *, tolerance: float) -> np.ndarray:
        """[n, H, W, 3] uint8, the frames at these ascending times.

        Args:
            times: [n], from the begin of the video [s].
            tolerance: how far a frame's time may be from the wanted one [s].

        Raises:
            VideoError: the video ends before, has no frame at one of the times, or is damaged.
        """
        frames = np.empty((len(times), *self._size, 3), np.uint8)
        try:
            self._enter(float(times[0]) - tolerance)
            for place, time in enumerate(times):
                frames[place] = self._frame_at(float(time), tolerance)
        except (self._av.FFmpegError, OSError, MemoryError) as error:
            raise VideoError(f"{self.path} is damaged ({error})") from error
        return frames

    def _enter(self, time: float) -> None:
        """Go to a key frame before `time`, unless the next frames lead there anyway."""
        at = 0.0 if self._last is None else self._last
        is_ahead = self._last is None or self._last <= time
        if is_ahead and time <= at + self._near:
            return
        wanted = max(0, int(time / self._stream.time_base))
        self._container.seek(wanted, stream=self._stream, backward=True)
        self._frames = iter(self._container.decode(self._stream))
        self._frame, self._last = None, None

    def _frame_at(self, time: float, tolerance: float) -> np.ndarray:
        while self._frame is None or self._frame.time < time - tolerance:
            self._frame = next(self._frames, None)
            if self._frame is None:
                ended = "has no frames" if self._last is None else f"ends at {self._last:.4f} s"
                raise VideoError(
                    f"{self.path} {ended}, but a frame at {time:.4f} s is wanted: "
                    f"the video is shorter than its table"
                )
            if self._frame.time is None or self._frame.is_corrupt:
                raise VideoError(f"{self.path} is damaged after {self._last} s")
            self._last = float(self._frame.time)
        if self._frame.time > time + tolerance:
            raise VideoError(
                f"{self.path} has no frame at {time:.4f} s, the next is at "
                f"{self._frame.time:.4f} s: farther than the tolerance of {tolerance:g} s"
            )
        self._check_size(self._frame)
        return self._frame.to_ndarray(format="rgb24")


class VideoWriter:
    """A video that frames are added to; complete once it is closed.

    Args:
        path: of the mp4 file.
        rate: frames a second.
        size: height and width of every frame.
        codec: h264_lossless keeps every number; h264 and av1 are smaller and lose some.

    Raises:
        VideoError: a frame of that size cannot be written with that codec.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: Path, *, rate: Fraction | int, size: tuple[int, int], codec: Codec):
        height, width = size
        name, pixels, options = CODECS[codec]
        least = 64 if codec == "av1" else 2
        if pixels == "yuv420p" and (height % 2 or width % 2 or min(size) < least):
            raise VideoError(
                f"frames of {height} x {width} points cannot be written as {codec}, which needs "
                f"even numbers from {least} on: choose images=png or images=h264_lossless"
            )
        os.environ.setdefault("SVT_LOG", "1")  # Errors only: this encoder writes a page otherwise.
        av = _pyav()
        self.n_frames = self.n_bytes = 0  # added, and written of them so far
        self._container = av.open(str(path), "w")
        self._stream: Any = self._container.add_stream(name, rate=rate, options=options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, pixels
        self._stream.codec_context.gop_size = KEY_FRAME_STEPS
        self._time_base = 1 / Fraction(rate)
        self._stream.codec_context.time_base = self._time_base
        self._from_ndarray = av.VideoFrame.from_ndarray

    def add(self, frames: np.ndarray) -> None:
        """Add frames [n, H, W, 3] uint8."""
        for values in frames:
            frame = self._from_ndarray(np.ascontiguousarray(values), format="rgb24")
            frame.pts, frame.time_base = self.n_frames, self._time_base
            self._write(self._stream.encode(frame))
            self.n_frames += 1

    def _write(self, packets: list[Any]) -> None:
        for packet in packets:
            self.n_bytes += packet.size
            self._container.mux(packet)

    def close(self) -> None:
        """Write what is left, and the table of contents."""
        self._write(self._stream.encode())
        self._container.close()


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"videos need PyAV ({error}): {EXTRA}") from error
    return av
