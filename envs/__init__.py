"""Tasks and robots: Gymnasium environments, scripted experts, vectorisation."""

import os


def _import_mujoco() -> None:
    """Import MuJoCo also where `MUJOCO_GL` names a backend that this machine lacks.

    MuJoCo loads the backend when it is imported and fails with it, but only rendering needs one;
    `envs.rendering` says what is wrong with it when a picture is wanted.
    """
    chosen = os.environ.get("MUJOCO_GL")
    try:
        import mujoco
    except (AttributeError, OSError, RuntimeError):
        if not chosen:
            raise
        os.environ["MUJOCO_GL"] = "disable"
        try:
            import mujoco  # noqa: F401
        finally:
            os.environ["MUJOCO_GL"] = chosen


_import_mujoco()
