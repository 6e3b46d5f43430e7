"""Choose MuJoCo's OpenGL back end (mujoco reads MUJOCO_GL once, when it is imported)."""

import importlib
import os
import platform
import sys

from sim.errors import RenderingError

ADVICE = (
    "On Linux without a display install EGL (Debian/Ubuntu: apt-get install libegl1 libgl1 libgles2 libglx-mesa0 "
    "libgl1-mesa-dri) and set MUJOCO_GL=egl, or install libosmesa6 and set MUJOCO_GL=osmesa; "
    "with a display MUJOCO_GL=glfw works too. MUJOCO_GL=disable runs physics without pictures."
)


_BACKEND_MODULES = ("mujoco.rendering.classic.gl_context", "mujoco.gl_context")


def choose_backend() -> bool:
    """Set MUJOCO_GL=egl on a headless Linux machine where nobody has chosen a back end; return whether it was set."""
    headless = not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    # Software OpenGL (llvmpipe) gains nothing from its own threads on pictures this small, and steals them from others.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if platform.system() != "Linux" or not headless or os.environ.get("MUJOCO_GL"):
        return False
    os.environ["MUJOCO_GL"] = "egl"
    return True


def import_mujoco() -> None:
    """Import mujoco with the chosen back end, also where someone imported it before and it chose another.

    Raises:
        RenderingError: MUJOCO_GL names a back end that does not exist or whose library is missing.
    """
    imported_before = "mujoco" in sys.modules
    changed = choose_backend()
    try:
        import mujoco  # noqa: F401

        if changed and imported_before:
            for name in _BACKEND_MODULES:
                if name in sys.modules:
                    importlib.reload(sys.modules[name])
    except (RuntimeError, ImportError, AttributeError, OSError) as error:
        backend = os.environ.get("MUJOCO_GL", "")
        raise RenderingError(
            f"mujoco could not load the OpenGL back end MUJOCO_GL={backend!r} ({type(error).__name__}: {error}). "
            f"Valid on Linux: egl, osmesa, glfw. {ADVICE}"
        ) from error
