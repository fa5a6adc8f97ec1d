"""Animated GIF of an episode that shows who acted: the learner in blue, the expert in orange.

MuJoCo renders the scene if an OpenGL context can be created; otherwise the scene is drawn to the same scale. The
overlay is the same for both.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_modules.pendulum.simulator import BoolArray, FloatArray, InvertedPendulum, load_mujoco, model_path

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

Colour = tuple[int, int, int]

LEARNER: Colour = (37, 99, 235)
EXPERT: Colour = (249, 115, 22)
WIDTH, HEIGHT = 480, 300  # px
SCENE_TOP, SCENE_HEIGHT = 50, 192  # px
BAR = (14, 276, 466, 288)  # px, the timeline: left, top, right, bottom
MAX_FRAMES = 80
MAX_BYTES = 1_000_000

_METRE = 180  # px
_RAIL = SCENE_HEIGHT - 48  # px below the scene's top
_INK, _GREY, _PAPER, _SKY = (15, 23, 42), (100, 116, 139), (255, 255, 255), (241, 245, 249)
_POLE, _LIMIT = (51, 65, 85), (220, 38, 38)
_gl_works = True  # False after a failure, so that each process tries OpenGL once

log = logging.getLogger(__name__)


def episode_gif(
    obs: NDArray[Any],
    expert_acted: BoolArray,
    rewards: NDArray[Any],
    path: str | Path,
    *,
    title: str = "",
    actions: NDArray[Any] | None = None,
) -> Path:
    """Write one episode as a GIF of 480 × 300 px, with at most 80 frames and 1 MB; long episodes are subsampled.

    Args:
        obs: (T, 4), the observations before each step.
        expert_acted: (T,) bool, True at the expert's steps.
        rewards: (T,), the reward of each step.
        path: path of the file; the folder is created if necessary.
        title: text of the first line in the picture.
        actions: (T, 1) or (T,), drawn as arrows on the cart if given.

    Returns:
        path.

    Raises:
        ValueError: T = 0, or the lengths differ.
    """
    lengths = [len(x) for x in (obs, expert_acted, rewards, actions) if x is not None]
    if lengths[0] == 0 or len(set(lengths)) > 1:
        raise ValueError(f"obs, expert_acted, rewards, actions: got lengths {lengths}, must be equal and at least 1")
    steps, film_steps = lengths[0], spread(lengths[0], MAX_FRAMES)
    obs, expert_acted = np.asarray(obs, dtype=np.float64), np.asarray(expert_acted, dtype=bool)
    forces = np.zeros(steps) if actions is None else np.ravel(actions) / InvertedPendulum.action_limit
    returns, timeline = np.cumsum(rewards), _timeline(expert_acted)
    frames = []
    for step, scene in zip(film_steps.tolist(), _scenes(obs[film_steps], expert_acted[film_steps]), strict=True):
        frame, draw = _canvas(scene, expert_acted, title or "InvertedPendulum")
        _state(draw, obs[step, 0], float(np.clip(forces[step], -1, 1)))
        _progress(draw, step, returns[step], expert_acted, timeline)
        frames.append(frame.reduce(2))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A step is 0.04 s. A subsampled episode runs faster than real time, because over 80 ms per frame looks too slow.
    _save(frames, path, milliseconds=int(min(80, 40 * steps / len(frames))))
    return path


def spread(steps: int, limit: int) -> NDArray[np.int64]:
    """Indices of at most `limit` evenly spaced steps, including the first and the last step."""
    return np.unique(np.linspace(0, steps - 1, min(steps, limit)).round().astype(int))


def _save(frames: list[Image], path: Path, milliseconds: int) -> None:
    """Save frames with one palette and without dithering, so that parts that do not move take no space."""
    from PIL import Image

    samples = frames[:: max(1, len(frames) // 8)]
    mosaic = Image.new("RGB", (WIDTH, HEIGHT * len(samples)))
    for row, frame in enumerate(samples):
        mosaic.paste(frame, (0, HEIGHT * row))
    palette = mosaic.quantize(128, dither=Image.Dither.NONE)
    while True:
        first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        durations = [milliseconds] * len(rest) + [1500]  # show the last frame for longer
        first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)
        if path.stat().st_size <= MAX_BYTES or len(rest) < 2:
            return
        frames, milliseconds = frames[:-1:2] + frames[-1:], 2 * milliseconds


# ---- the scene, 480 × 192 px


def _scenes(obs: FloatArray, expert_acted: BoolArray) -> list[Image]:
    global _gl_works
    if _gl_works:
        try:
            return _rendered(obs, expert_acted)
        # Platforms fail in different ways without OpenGL (missing libraries, attributes, devices, MuJoCo's FatalError);
        # a run should not stop for a picture.
        except Exception as error:  # noqa: BLE001
            _gl_works = False
            log.info("OpenGL is not available, episodes are drawn instead: %s: %s", type(error).__name__, error)
    return [_draw_scene(x, theta, bool(acted)) for (x, theta, _, _), acted in zip(obs, expert_acted, strict=True)]


def _rendered(obs: FloatArray, expert_acted: BoolArray) -> list[Image]:
    from PIL import Image

    mujoco = load_mujoco()
    spec = mujoco.MjSpec.from_file(str(model_path()))
    sky = {"type": mujoco.mjtTexture.mjTEXTURE_SKYBOX, "builtin": mujoco.mjtBuiltin.mjBUILTIN_FLAT}
    spec.add_texture(name="sky", width=64, height=64, rgb1=[c / 255 for c in _SKY], rgb2=[c / 255 for c in _SKY], **sky)
    model = spec.compile()
    model.vis.global_.fovy = 12  # degrees; a narrow, distant view keeps the plane of motion to scale
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.55, 0.5
    model.geom("rail").rgba[:3] = np.divide(_GREY, 255)
    model.geom("cpole").rgba[:3] = np.divide(_POLE, 255)
    data, camera, scenes = mujoco.MjData(model), mujoco.MjvCamera(), []
    camera.lookat[:] = 0, 0, (_RAIL - SCENE_HEIGHT / 2) / _METRE
    camera.azimuth, camera.elevation, camera.distance = 90, 0, SCENE_HEIGHT / _METRE / 2 / math.tan(math.radians(6))
    with warnings.catch_warnings(action="ignore"), mujoco.Renderer(model, SCENE_HEIGHT, WIDTH) as renderer:
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        for state, acted in zip(obs, expert_acted, strict=True):
            model.geom("cart").rgba[:3] = np.divide(EXPERT if acted else LEARNER, 255)
            data.qpos[:] = state[:2]
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            scenes.append(Image.fromarray(renderer.render()))
    return scenes


def _draw_scene(x: float, theta: float, expert: bool) -> Image:
    """Draw the scene without OpenGL, at four times the size, then reduced for smooth edges."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (4 * WIDTH, 4 * SCENE_HEIGHT), _SKY)
    draw = ImageDraw.Draw(picture)

    def capsule(start: tuple[float, float], end: tuple[float, float], radius: float, colour: Colour) -> None:
        ends = [(4 * across, 4 * down) for across, down in (_pixel(*start), _pixel(*end))]
        draw.line(ends, colour, round(8 * radius * _METRE))
        size = 4 * radius * _METRE
        for across, down in ends:
            draw.ellipse((across - size, down - size, across + size, down + size), colour)

    capsule((-1, 0), (1, 0), 0.02, _GREY)
    capsule((x, 0), (x + 0.6 * math.sin(theta), 0.6 * math.cos(theta)), 0.049, _POLE)
    capsule((x - 0.1, 0), (x + 0.1, 0), 0.1, EXPERT if expert else LEARNER)
    return picture.reduce(4)


def _pixel(x: float, height: float) -> tuple[float, float]:
    """The pixel (right, down) in the scene for a point in metres."""
    return WIDTH / 2 + x * _METRE, _RAIL - height * _METRE


# ---- the overlay, the same for both scenes


def _timeline(expert_acted: BoolArray) -> list[Colour]:
    """A colour for each pixel of the bar, by the share of steps at that pixel in which the expert acted."""
    left, _, right, _ = BAR
    edges = np.linspace(0, len(expert_acted), right - left + 1)
    until = np.concatenate([[0], np.cumsum(expert_acted)])
    shares = np.diff(np.interp(edges, np.arange(len(until)), until)) / np.diff(edges)
    return [_mixed(LEARNER, EXPERT, float(share)) for share in shares]


def _mixed(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + share * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _canvas(scene: Image, expert_acted: BoolArray, title: str) -> tuple[Image, ImageDraw]:
    """Draw the parts that all frames share, at twice the size, so that text and lines are smooth after reduction."""
    from PIL import Image, ImageDraw

    frame = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), _PAPER)
    frame.paste(scene.resize((2 * WIDTH, 2 * SCENE_HEIGHT), Image.Resampling.NEAREST), (0, 2 * SCENE_TOP))
    draw = ImageDraw.Draw(frame)
    _legend(draw, title)
    _text(draw, (466, 258), f"expert acts in {np.mean(expert_acted):.0%} of the steps", _GREY, 12, "rm")
    for metres, label in ((-1, "-1 m"), (-0.5, "-0.5 m"), (0, "0"), (0.5, "0.5 m"), (1, "1 m")):
        across, down = _pixel(metres, -0.16)
        colour = _LIMIT if abs(metres) == 1 else _GREY  # the rail ends at ±1 m
        draw.line((2 * across, 2 * (SCENE_TOP + down), 2 * across, 2 * (SCENE_TOP + down + 5)), colour, 4)
        _text(draw, (across, SCENE_TOP + down + 12), label, colour, 9, "mm")
    return frame, draw


def _legend(draw: ImageDraw, title: str) -> None:
    _text(draw, (14, 17), title, _INK, 15)
    for left, colour, name in ((14, LEARNER, "learner"), (84, EXPERT, "expert")):
        draw.rounded_rectangle((2 * left, 2 * 253, 2 * (left + 11), 2 * 264), 5, colour)
        _text(draw, (left + 17, 258), name, _INK, 12)


def _text(
    draw: ImageDraw, place: tuple[float, float], text: str, colour: Colour, size: int, anchor: str = "lm"
) -> None:
    draw.text((2 * place[0], 2 * place[1]), text, colour, _font(2 * size), anchor)


@functools.cache
def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _state(draw: ImageDraw, x: float, force: float) -> None:
    """Draw the lean at which the episode ends, and the force as an arrow on the cart.  force: from −1 to 1."""
    for lean in (-InvertedPendulum.lean_limit, InvertedPendulum.lean_limit):
        for start in np.arange(0.66, 0.8, 0.05):
            points = [_pixel(x + far * math.sin(lean), far * math.cos(lean)) for far in (start, start + 0.025)]
            draw.line([(2 * across, 2 * (SCENE_TOP + down)) for across, down in points], _LIMIT, 3)
    if force:
        across, down = _pixel(x, 0)
        across, down, side = 2 * across, 2 * (SCENE_TOP + down), math.copysign(1, force)
        tip = across + side * 8 + 44 * force
        draw.line((across, down, tip, down), _PAPER, 6)
        draw.polygon([(tip, down - 10), (tip + side * 14, down), (tip, down + 10)], _PAPER)


def _progress(draw: ImageDraw, step: int, earned: float, expert_acted: BoolArray, timeline: list[Colour]) -> None:
    """Draw the step, the return so far, who acts, and the timeline, in which future steps are pale."""
    steps, expert = len(expert_acted), bool(expert_acted[step])
    _text(draw, (14, 37), f"step {step + 1} of {steps}    return {earned:.4g}", _GREY, 12)
    draw.rounded_rectangle((2 * 372, 2 * 12, 2 * 466, 2 * 38), 26, EXPERT if expert else LEARNER)
    _text(draw, (419, 25), "EXPERT" if expert else "LEARNER", _PAPER, 14, "mm")
    left, top, right, bottom = BAR
    now = left + (step + 1) / steps * (right - left)
    for across, colour in enumerate(timeline, start=left):
        shade = colour if across < now else _mixed(colour, _PAPER, 0.65)
        draw.rectangle((2 * across, 2 * top, 2 * across + 1, 2 * bottom - 1), shade)
    draw.rectangle((2 * now - 2, 2 * top - 6, 2 * now + 1, 2 * bottom + 5), _INK)
