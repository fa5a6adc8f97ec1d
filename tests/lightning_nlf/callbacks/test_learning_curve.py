from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_nlf.callbacks import pictures
from lightning_nlf.callbacks.pictures import History, draw
from lightning_nlf.checkpoint_io import SafeCheckpointIO


def test_a_history_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    history = History()
    history.unit = "environment steps"
    for x in range(3):
        history.append("train", x, 10 * x)
    history.append("val/return", 2, 1000)
    SafeCheckpointIO().save_checkpoint({"history": history.state_dict()}, tmp_path / "a.ckpt")
    again = History()
    again.append("forgotten", 0, 0)
    again.load_state_dict(SafeCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")["history"])
    assert again.unit == "environment steps"
    assert again.series("train") == ([0, 1, 2], [0, 10, 20])
    assert again.series("val/return") == ([2], [1000])
    assert again.series("forgotten") == ([], [])


def test_an_empty_history_comes_back() -> None:
    again = History()
    again.load_state_dict(History().state_dict())
    assert again.points == {}


def test_a_long_history_is_thinned_from_end_to_end() -> None:
    """At 2001 points every second is dropped, and 0, 2, …, 2000 stay (1001 points). Then 2001 … 2999 are added."""
    history = History()
    for x in range(3000):
        history.append("train", x, -x)
    xs, ys = history.series("train")
    assert pictures.LONGEST == 2000
    assert xs == [*range(0, 2001, 2), *range(2001, 3000)] and len(xs) == 2000
    assert ys == [-x for x in xs]


def test_the_picture_has_all_three_lines(tmp_path: Path) -> None:
    history = History()
    for slope, name in enumerate(("train", "val/return", "val/return_sampled")):
        for x in range(5):
            history.append(name, x, slope * x)
    path = draw(history, tmp_path / "new/curve.png", "run")
    with Image.open(path) as image:
        assert image.size == (960, 540)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1_000_000)}
    assert {(0x94, 0xA3, 0xB8), (0xF9, 0x73, 0x16), (0x25, 0x63, 0xEB)} <= colours


def test_one_point_can_be_seen(tmp_path: Path) -> None:
    history = History()
    history.append("train", 5, 7)
    with Image.open(draw(history, tmp_path / "curve.png", "run")) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB").crop((100, 60, 950, 440))))
    grey = (pixels == torch.tensor([0x94, 0xA3, 0xB8])).all(-1).sum()
    assert grey > 10
