"""How the pictures of a run look, whatever they show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it takes a second, and many a run draws nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels beside each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8 if count == 1 else 5 * count, 4.5), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots(1, count, squeeze=False)[0].tolist()
    for panel in axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_title(title, loc="left", fontweight="bold")
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Writes the PNG, with a legend of what has a label. Raises OSError where that cannot be written."""
    named = {label: x for axes in figure.axes for x, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:  # below: never on top of the data
        figure.legend(list(named.values()), list(named), frameon=False, loc="outside lower center", ncols=len(named))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
