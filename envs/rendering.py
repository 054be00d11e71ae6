"""Off-screen pictures on any machine: picks an OpenGL backend that works, on the first picture.

`MUJOCO_GL`, where set, is obeyed. Otherwise Linux tries EGL, OSMesa and (with a display) GLFW, each
in a process of its own because a broken driver may crash or hang; other systems have one backend.
"""

# MuJoCo ships no type stubs, its names come from a compiled module.
# pyright: reportAttributeAccessIssue=false

import functools
import importlib
import os
import platform
import subprocess
import sys
from typing import Any

import mujoco
import numpy as np

DEFAULT = "system"  # the one backend of a system other than Linux
PROBE_TIMEOUT = 10.0  # s; a working backend needs about one
PROBE = """
import mujoco
from mujoco.{backend} import GLContext
context = GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 100)
"""
HELP = (
    "Install one of them, on Debian or Ubuntu: apt-get install libegl1 libegl-mesa0 "
    "libgl1-mesa-dri libgl1   (or: apt-get install libosmesa6). "
    "Nothing but rendering needs it."
)


class RenderingError(RuntimeError):
    """No OpenGL backend works on this machine."""


class Renderer:
    """Draws a simulation as seen by one camera.

    Args:
        model: the model that is drawn.
        camera: name of a camera of the model.
        width: picture width [px].
        height: picture height [px].

    Raises:
        RenderingError: no OpenGL backend works; the message says how to install one.
        ValueError: the picture is larger than the model's off-screen buffer.
    """

    def __init__(self, model: mujoco.MjModel, camera: str, *, width: int, height: int):
        buffer = model.vis.global_
        if width > buffer.offwidth or height > buffer.offheight:
            raise ValueError(
                f"a picture of {width} x {height} px exceeds the model's off-screen buffer of "
                f"{buffer.offwidth} x {buffer.offheight} px: raise visual/global/offwidth and "
                f"offheight in its XML"
            )
        self._model = model
        self._context = _open_context(width, height)
        try:
            self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as error:  # GLFW without a display only warns before this
            raise _failure(choose_backend(), error) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._drawing)
        self._scene = mujoco.MjvScene(model=model, maxgeom=1000)
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
        self._camera.fixedcamid = model.camera(camera).id
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)

    def __call__(self, state: mujoco.MjData) -> np.ndarray:
        """A picture [height, width, 3] uint8."""
        self._context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, state, self._options, None, self._camera, everything, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._drawing)
        mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._drawing)
        return np.flipud(self._pixels).copy()

    def close(self) -> None:
        """Free the drawing context; the renderer cannot be used afterwards."""
        self._context.make_current()
        self._drawing.free()
        self._context.free()


@functools.cache
def choose_backend() -> str:
    """Name of an OpenGL backend that works here: "egl", "osmesa", "glfw", or what the user set.

    Raises:
        RenderingError: none works; the message says how to install one.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if chosen or platform.system() != "Linux":
        return chosen or DEFAULT
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    failures = []
    for backend in ("egl", "osmesa", "glfw") if display else ("egl", "osmesa"):
        failure = probe(backend)
        if not failure:
            return backend
        failures.append(f"{backend}: {failure}")
    raise RenderingError(f"cannot render, no OpenGL backend works ({'; '.join(failures)}). {HELP}")


def _open_context(width: int, height: int) -> Any:
    """An OpenGL context of the chosen backend, made current."""
    backend = choose_backend()
    # Other names than these three are left to MuJoCo.
    module = backend if backend in ("egl", "osmesa", "glfw") else "gl_context"
    try:
        context = importlib.import_module(f"mujoco.{module}").GLContext(width, height)
        context.make_current()
    except (AttributeError, ImportError, RuntimeError) as error:
        raise _failure(backend, error) from error
    return context


def _failure(backend: str, error: Exception) -> RenderingError:
    return RenderingError(
        f"cannot render with the OpenGL backend {backend!r} ({error}): leave MUJOCO_GL unset, "
        f"and one that works is chosen. {HELP}"
    )


def probe(backend: str, timeout: float = PROBE_TIMEOUT) -> str:
    """Why an OpenGL backend does not work here, "" if it does.

    Args:
        backend: "egl", "osmesa" or "glfw".
        timeout: s.
    """
    environment = {**os.environ, "MUJOCO_GL": backend}
    command = [sys.executable, "-c", PROBE.format(backend=backend)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout:g} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
