# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Pictures: what must be seen is seen, and a machine that cannot render says what to do."""

import os
import subprocess
import sys
import time
from pathlib import Path

import mujoco
import numpy as np
import pytest

from sim import get_task, task_names
from sim.render import Renderer

TASKS = task_names()
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.render


def draw(task, states, size=64, camera=None):
    renderer = Renderer(task.model, size, size, camera or task.cameras[0])
    frames = renderer.render_states(states)
    renderer.close()
    return frames


@pytest.mark.parametrize("name", TASKS)
def test_goal_and_start_look_different(name):
    task = get_task(name)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        start = task.reset(task.model, rng)
        frames = draw(task, np.stack([start, task.sample_goal(task.model, start, rng)])).astype(int)
        assert frames.shape == (2, 64, 64, 3)
        changed = np.abs(frames[0] - frames[1]).max(axis=-1) > 40
        assert changed.sum() > 30


@pytest.mark.parametrize("name", TASKS)
def test_every_camera_sees_start_and_goal_from_its_own_place(name):
    task = get_task(name)
    assert len(task.cameras) >= 2
    rng = np.random.default_rng(0)
    start = task.reset(task.model, rng)
    states = np.stack([start, task.sample_goal(task.model, start, rng)])
    views = [draw(task, states, camera=camera).astype(int) for camera in task.cameras]
    for frames in views:
        assert (np.abs(frames[0] - frames[1]).max(axis=-1) > 40).sum() > 20
        assert len(np.unique(frames[0].reshape(-1, 3) // 32, axis=0)) >= 5
    assert (np.abs(views[0][0] - views[1][0]).max(axis=-1) > 20).mean() > 0.2


@pytest.mark.parametrize("name", TASKS)
def test_two_renderers_draw_the_same_picture(name):
    task = get_task(name)
    state = task.reset(task.model, np.random.default_rng(0))[None]
    assert np.array_equal(draw(task, state), draw(task, state))


def test_half_a_pixel_of_motion_is_visible():
    task = get_task("reach")
    state = task.reset(task.model, np.random.default_rng(1))
    moved = state.copy()
    moved[1] += 0.02  # radians at the shoulder: at most 5 mm at the tip, about half a pixel
    before, after = draw(task, np.stack([state, moved])).astype(int)
    assert np.abs(before - after).max() > 10


def test_push_picture_tells_the_box_from_the_box_turned_round():
    task = get_task("push")
    state = task.reset(task.model, np.random.default_rng(1))
    turned = state.copy()
    turned[3] += np.pi
    before, after = draw(task, np.stack([state, turned])).astype(int)
    assert (np.abs(before - after).max(axis=-1) > 60).sum() >= 8


@pytest.mark.parametrize("name", TASKS)
def test_rendering_leaves_the_shared_model_alone(name):
    task = get_task(name)
    width = task.model.vis.global_.offwidth
    draw(task, task.reset(task.model, np.random.default_rng(0))[None], size=16)
    assert task.model.vis.global_.offwidth == width


def test_rendering_is_fast_enough_to_collect_with():
    task = get_task("reach")
    renderer = Renderer(task.model, 64, 64, "top")
    data = mujoco.MjData(task.model)
    mujoco.mj_forward(task.model, data)
    began = time.process_time()
    for _ in range(100):
        renderer.render(data)
    assert time.process_time() - began < 1.0  # 0.1 s here; shadows or multisampling would cost four times as much
    renderer.close()


def test_bad_arguments_say_what_is_valid():
    model = get_task("reach").model
    with pytest.raises(ValueError, match=r"'side'.*\['top', 'front'\]"):
        Renderer(model, 64, 64, "side")
    with pytest.raises(ValueError, match="at least 1"):
        Renderer(model, 0, 64, "top")


@pytest.mark.parametrize("backend", ["osmesa", "no-such-backend", "glfw"])
def test_a_machine_that_cannot_render_is_told_what_to_do(backend):
    """Without its library or a display, every other back end fails with our error, which names EGL."""
    code = (
        "import sys\n"
        "try:\n"
        "    import sim\n"
        "    from sim.render import Renderer\n"
        "    Renderer(sim.get_task('reach').model, 8, 8, 'top')\n"
        "except RuntimeError as error:\n"
        "    print(type(error).__name__, error)\n"
        "    sys.exit(3)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    environment |= {"MUJOCO_GL": backend, "PYTHONPATH": str(ROOT)}
    environment.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip(f"this machine can render with MUJOCO_GL={backend}")
    assert done.returncode == 3, done.stderr
    assert "RenderingError" in done.stdout
    assert "MUJOCO_GL=egl" in done.stdout
    assert "apt-get install libegl1" in done.stdout


@pytest.mark.parametrize("first", ["", "import mujoco; "])
def test_egl_is_chosen_on_a_headless_machine(first):
    """Also where mujoco was imported before sim and had chosen GLFW."""
    environment = {key: value for key, value in os.environ.items() if key not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    environment.pop("MUJOCO_GL", None)
    environment["PYTHONPATH"] = str(ROOT)
    code = (
        f"{first}import sim, os; from sim.render import Renderer; "
        "Renderer(sim.get_task('reach').model, 8, 8, 'top'); print(os.environ.get('MUJOCO_GL', ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("egl" if sys.platform == "linux" else "")
