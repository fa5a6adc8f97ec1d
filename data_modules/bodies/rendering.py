"""Animated GIF of an episode of any body, replayed from its seed and actions with gymnasium's camera."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.bodies.vector import make
from data_modules.episodes import BoolArray
from data_modules.pendulum import rendering as frames
from data_modules.pendulum.simulator import load_mujoco

MAX_FRAMES = 40  # about 1 MB if the floor moves in the picture

log = logging.getLogger(__name__)


def replay_gif(
    id: str,
    seed: int,
    actions: Sequence[NDArray[Any]],
    expert_acted: BoolArray,
    rewards: NDArray[Any],
    path: Path,
    *,
    title: str,
) -> bool:
    """Write the last T steps of an episode as a GIF of 480 × 300 px, with at most 40 frames and 1 MB.

    Args:
        actions: the actions of all steps since the reset, including those before the last T; (action_dim,) each.
        expert_acted, rewards: (T,) for the last T steps.

    Returns:
        Whether the file was written; False if no OpenGL context can be created.
    """
    steps = len(rewards)
    film_steps = frames.spread(steps, MAX_FRAMES)
    returns, timeline = np.cumsum(rewards), frames._timeline(expert_acted)
    pictures = []
    try:
        for step, scene in zip(
            film_steps.tolist(), _scenes(id, seed, actions, film_steps + len(actions) - steps), strict=True
        ):
            picture, draw = _canvas(scene, title)
            frames._progress(draw, step, returns[step], expert_acted, timeline)
            pictures.append(picture.reduce(2))
    # Platforms fail in different ways without OpenGL; a run should not stop for a picture.
    except Exception as error:  # noqa: BLE001
        log.info("no picture of %s: %s: %s", id, type(error).__name__, error)
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    frames._save(pictures, path, milliseconds=100)
    return True


def _scenes(id: str, seed: int, actions: Sequence[NDArray[Any]], film_steps: NDArray[np.int64]) -> Iterator[Any]:
    """Yield the camera's picture before each of `film_steps`, which are counted from the reset."""
    env = make(id, render_mode="rgb_array")
    _look(env)
    try:
        env.reset(seed=seed)
        low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        for t in range(int(film_steps[-1]) + 1):
            if t in film_steps:
                yield env.render()
            env.step(np.clip(actions[t], low, high))
    finally:
        env.close()


def _look(env: Any) -> None:
    """Set the size of the camera, and use the camera that follows the body if the model has one."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None:
        return  # not a MuJoCo environment
    mujoco = load_mujoco()
    camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if camera >= 0:
        renderer.camera_id = camera
    renderer.width, renderer.height = frames.WIDTH, frames.SCENE_HEIGHT
    # without a GPU, shadows and mirrors take most of the rendering time
    renderer.model.vis.quality.shadowsize = 0
    renderer.model.mat_reflectance[:] = 0


def _canvas(scene: NDArray[np.uint8], title: str) -> tuple[Any, Any]:
    """A frame at twice the size, in the layout of `frames`, with the scene in the middle and no position axis."""
    from PIL import Image, ImageDraw, ImageOps

    size = 2 * frames.SCENE_HEIGHT
    picture = Image.new("RGB", (2 * frames.WIDTH, 2 * frames.HEIGHT), frames._PAPER)
    picture.paste(frames._SKY, (0, 2 * frames.SCENE_TOP, 2 * frames.WIDTH, 2 * frames.SCENE_TOP + size))
    view = ImageOps.posterize(Image.fromarray(scene), 4)  # fewer colours leave room in the palette for the overlay
    view = view.resize((round(size * view.width / view.height), size))
    picture.paste(view, (frames.WIDTH - view.width // 2, 2 * frames.SCENE_TOP))
    draw = ImageDraw.Draw(picture)
    frames._legend(draw, title)
    return picture, draw
