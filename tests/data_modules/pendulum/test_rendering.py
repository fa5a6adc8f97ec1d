"""GIFs of episodes: their frames, and the colours of who acted, with and without OpenGL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.pendulum import rendering
from data_modules.pendulum.rendering import BAR, EXPERT, LEARNER, SCENE_TOP, episode_gif

PILL = (380, 25)  # inside the box with the actor's name, left of its text
BAR_ROW = (BAR[1] + BAR[3]) // 2


@pytest.fixture
def no_opengl_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_gl_works", False)


def cart(x: float) -> tuple[int, int]:
    """A pixel of a cart at x m, 0.13 m right of its centre; the scene has 180 px per metre, the rail is at 144 px."""
    return round(240 + 180 * (x + 0.13)), SCENE_TOP + 144


def frames_of(path: Path) -> list[Image.Image]:
    with Image.open(path) as gif:
        frames = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            frames.append(gif.convert("RGB"))
    return frames


def actor_at(frame: Image.Image, pixel: tuple[int, int], tolerance: int = 12) -> str | None:
    """The actor whose colour a pixel has; the file's palette rounds colours a little."""
    colour = np.array(frame.getpixel(pixel))
    near = {"learner": abs(colour - LEARNER).max(), "expert": abs(colour - EXPERT).max()}
    return next((actor for actor, distance in near.items() if distance <= tolerance), None)


def episode(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cart moves from −1 m to 1 m while the pole swings; the expert acts in the middle third."""
    obs = np.zeros((steps, 4))
    obs[:, 0], obs[:, 1] = np.linspace(-1, 1, steps), 0.2 * np.sin(np.arange(steps))
    third = np.arange(steps) * 3 // steps
    return obs, third == 1, np.ones(steps)


@pytest.mark.parametrize(("steps", "frames"), [(1, 1), (2, 2), (80, 80), (81, 80), (1000, 80)])
def test_frames_size_and_weight(no_opengl_context, tmp_path, steps, frames):
    path = episode_gif(*episode(steps), tmp_path / "new" / "folder" / "episode.gif", title="a title")
    with Image.open(path) as gif:
        assert getattr(gif, "n_frames", 1) == frames
        assert gif.size == (480, 300)
    assert path == tmp_path / "new" / "folder" / "episode.gif"
    assert path.stat().st_size <= 1_000_000


def test_colours_say_who_acted(no_opengl_context, tmp_path):
    obs, expert_acted, rewards = episode(30)
    frames = frames_of(episode_gif(obs, expert_acted, rewards, tmp_path / "episode.gif"))
    for step, frame in enumerate(frames):
        actor = "expert" if 10 <= step < 20 else "learner"
        assert actor_at(frame, PILL) == actor
        assert actor_at(frame, cart(obs[step, 0])) == actor


def test_timeline_shows_the_past_in_full_colour_and_the_rest_pale(no_opengl_context, tmp_path):
    """The bar is 452 px wide: steps 5, 15 and 25 of 30 are at one sixth, a half and five sixths of it."""
    frames = frames_of(episode_gif(*episode(30), tmp_path / "episode.gif"))
    places = [(BAR[0] + round(452 * share), BAR_ROW) for share in (1 / 6, 1 / 2, 5 / 6)]
    assert [actor_at(frames[-1], place) for place in places] == ["learner", "expert", "learner"]
    assert [actor_at(frames[8], place) for place in places] == ["learner", None, None]


def test_a_long_episodes_timeline_mixes_the_colours(no_opengl_context, tmp_path):
    """1000 steps on 452 px: if the expert acts in every second step, all pixels mix both colours."""
    obs, _, rewards = episode(1000)
    last = frames_of(episode_gif(obs, np.arange(1000) % 2 == 1, rewards, tmp_path / "episode.gif"))[-1]
    colours = np.array([last.getpixel((across, BAR_ROW)) for across in range(BAR[0] + 5, BAR[2] - 5)])
    np.testing.assert_allclose(colours.mean(0), np.mean([LEARNER, EXPERT], axis=0), atol=12)


def test_first_and_last_step_are_always_shown(no_opengl_context, tmp_path):
    obs, expert_acted, rewards = episode(999)
    expert_acted[[0, -1]] = True
    frames = frames_of(episode_gif(obs, expert_acted, rewards, tmp_path / "episode.gif"))
    assert actor_at(frames[0], cart(-1)) == actor_at(frames[-1], cart(1)) == "expert"
    assert actor_at(frames[1], PILL) == actor_at(frames[-2], PILL) == "learner"


def test_a_heavy_file_loses_frames_and_keeps_its_end(no_opengl_context, tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "MAX_BYTES", 60_000)
    path = episode_gif(*episode(80), tmp_path / "episode.gif")
    frames = frames_of(path)
    assert path.stat().st_size <= 60_000
    assert 2 <= len(frames) < 80
    assert actor_at(frames[-1], cart(1)) == "learner"


def test_actions_are_drawn_towards_where_they_push(no_opengl_context, tmp_path):
    """The arrow starts at the cart's centre: if the force is to the right, a pixel 10 px right of it is white."""
    obs, rewards = np.zeros((2, 4)), np.ones(2)
    actions = np.array([[3.0], [-3.0]])
    right, left = frames_of(
        episode_gif(obs, np.zeros(2, dtype=bool), rewards, tmp_path / "episode.gif", actions=actions)
    )
    for frame, white, blue in ((right, 250, 230), (left, 230, 250)):
        assert min(frame.getpixel((white, SCENE_TOP + 144))) > 240
        assert actor_at(frame, (blue, SCENE_TOP + 144)) == "learner"


def test_without_opengl_it_is_drawn_and_not_tried_again(tmp_path, monkeypatch):
    attempts = []

    def no_opengl():
        attempts.append(1)
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(rendering, "_gl_works", True)
    monkeypatch.setattr(rendering, "load_mujoco", no_opengl)
    for name in ("first.gif", "second.gif"):
        frames = frames_of(episode_gif(*episode(6), tmp_path / name))
        assert actor_at(frames[3], cart(0.2)) == "expert"
    assert len(attempts) == 1


def test_with_opengl_the_scene_is_in_the_same_place_and_colour():
    """Drawn and rendered, the silhouettes of cart, pole and rail differ in less than a hundredth of the picture."""
    obs = np.array([[-0.6, 0.15, 0, 0], [1.0, -0.2, 0, 0]])
    rendered = rendering._scenes(obs, np.array([True, False]))
    if not rendering._gl_works:
        pytest.skip("no OpenGL context can be made here")
    for (x, theta, _, _), expert, scene in zip(obs, (True, False), rendered, strict=True):
        drawing = rendering._draw_scene(x, theta, expert)
        sky = np.array(drawing.getpixel((5, 5)))
        silhouettes = [abs(np.asarray(picture, dtype=int) - sky).max(-1) > 60 for picture in (drawing, scene)]
        assert silhouettes[0].mean() > 0.01
        assert (silhouettes[0] != silhouettes[1]).mean() < 0.01
        across, down = cart(x)
        assert actor_at(scene, (across, down - SCENE_TOP), tolerance=60) == ("expert" if expert else "learner")


@pytest.mark.parametrize(("steps", "marks", "rewards"), [(0, 0, 0), (3, 2, 3), (3, 3, 4)])
def test_nothing_and_lengths_that_differ_are_refused(tmp_path, steps, marks, rewards):
    with pytest.raises(ValueError, match="got lengths"):
        episode_gif(np.zeros((steps, 4)), np.zeros(marks, dtype=bool), np.ones(rewards), tmp_path / "episode.gif")
