"""An episode of any body as an animated GIF: played again from its seed and its actions, through gymnasium's camera."""

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

MAX_FRAMES = 40  # so many of a moving floor are 1 MB

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
    """Writes the last T steps of an episode as a GIF of 480 × 300 px, at most 40 frames and 1 MB.

    Args:
        actions: each (action_dim,), of all steps since the reset; the first of them may lie before what is shown.
        expert_acted, rewards: (T,), of the steps shown.

    Returns:
        Whether it could be written: not where no OpenGL context can be made.
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
    # Every platform has its own way to lack OpenGL, and none of them is a reason to lose a run.
    except Exception as error:  # noqa: BLE001
        log.info("no picture of %s: %s: %s", id, type(error).__name__, error)
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    frames._save(pictures, path, milliseconds=100)
    return True


def _scenes(id: str, seed: int, actions: Sequence[NDArray[Any]], film_steps: NDArray[np.int64]) -> Iterator[Any]:
    """What the camera sees before each of `film_steps`, counted from the reset."""
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
    """In the size of the scene, and after the body where its model has a camera for that: by default it would leave."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None:
        return  # not MuJoCo's
    mujoco = load_mujoco()
    camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if camera >= 0:
        renderer.camera_id = camera
    renderer.width, renderer.height = frames.WIDTH, frames.SCENE_HEIGHT
    # Without a GPU, shadows and mirrors take most of the time.
    renderer.model.vis.quality.shadowsize = 0
    renderer.model.mat_reflectance[:] = 0


def _canvas(scene: NDArray[np.uint8], title: str) -> tuple[Any, Any]:
    """Twice the size, as `frames` draws on it: the scene in the middle, no axis, as a body has no place of its own."""
    from PIL import Image, ImageDraw, ImageOps

    size = 2 * frames.SCENE_HEIGHT
    picture = Image.new("RGB", (2 * frames.WIDTH, 2 * frames.HEIGHT), frames._PAPER)
    picture.paste(frames._SKY, (0, 2 * frames.SCENE_TOP, 2 * frames.WIDTH, 2 * frames.SCENE_TOP + size))
    seen = ImageOps.posterize(Image.fromarray(scene), 4)  # leaves the palette room for the colours that mean something
    seen = seen.resize((round(size * seen.width / seen.height), size))
    picture.paste(seen, (frames.WIDTH - seen.width // 2, 2 * frames.SCENE_TOP))
    draw = ImageDraw.Draw(picture)
    frames._legend(draw, title)
    return picture, draw
