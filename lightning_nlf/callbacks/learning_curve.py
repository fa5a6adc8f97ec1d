"""The learning curve of a run: a history that fits into every checkpoint, and its picture."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import torch

from lightning_nlf.callbacks.drawing import panels, save

LONGEST = 2000  # points of a series: more are no more to the eye, and each checkpoint carries them


class History:
    """Returns and what else is drawn, by name (`train`, `val/return`, …), against what the run had cost by then."""

    def __init__(self) -> None:
        self.unit = "optimizer steps"
        self.points: dict[str, array[float]] = {}  # x, y, x, y, …

    def append(self, name: str, x: float, y: float) -> None:
        points = self.points.setdefault(name, array("d"))
        points.extend((x, y))
        if len(points) > 2 * LONGEST:  # every second point goes, but the newest stays
            xs, ys = self.series(name)
            self.points[name] = array(
                "d", [value for point in zip(xs[::-2], ys[::-2], strict=True) for value in point[::-1]][::-1]
            )

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """x and y of all points, in the order of their coming; empty where there is no such name."""
        points = self.points.get(name, array("d"))
        return points[::2].tolist(), points[1::2].tolist()

    def state_dict(self) -> dict[str, Any]:
        # One tensor: thousands of Python numbers would take longer to pickle than an iteration does.
        points = torch.tensor([value for points in self.points.values() for value in points], dtype=torch.float64)
        return {"unit": self.unit, "lengths": {name: len(x) for name, x in self.points.items()}, "points": points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.unit = state["unit"]
        parts = state["points"].split(list(state["lengths"].values()))
        self.points = {name: array("d", part.tolist()) for name, part in zip(state["lengths"], parts, strict=True)}


def draw(history: History, path: Path, title: str) -> Path:
    """Draws the returns of `history` into the PNG at `path`. Raises OSError where that cannot be written."""
    from matplotlib.ticker import EngFormatter

    figure, (axes,) = panels(1, f"{title}: learning curve")
    for name, label, style in _LINES:
        x, y = history.series(name)
        if x:
            marker = "o" if len(x) == 1 else style.get("marker")
            axes.plot(x, y, label=label, **(style | {"marker": marker}))
    axes.set_xlabel(history.unit)
    axes.set_ylabel("return of an episode")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.01)
    return save(figure, path)


_LINES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("train", "training (one collection)", {"color": "#94a3b8", "linewidth": 1.2}),
    ("val/return_sampled", "validation, sampled", {"color": "#f97316", "linewidth": 1.8, "marker": "."}),
    ("val/return", "validation, deterministic", {"color": "#2563eb", "linewidth": 2.2, "marker": "."}),
)
