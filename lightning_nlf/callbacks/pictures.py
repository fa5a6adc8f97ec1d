"""Plots of a run: learning curve, rewards of replies by length and by proxy reward, and rewards against the KL."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import followed, on_every_row, row_sums

if TYPE_CHECKING:  # importing matplotlib takes a second, and many runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = dict[str, list[float]]  # lists of equal length, by name
LONGEST = 2000  # points of a series; more points would not be visible, and checkpoints contain all points
BINS = 20  # bins for the mean by length; with more bins, each bin would have only a few replies
COURSE = {"kl": "val/kl_sampled", "reward": "val/return_sampled", "true_reward": "val/true_reward_sampled"}


def panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` panels side by side."""
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
    """Save a figure as a PNG, with a legend of all labels. Raises OSError if the file cannot be written."""
    handles = {label: x for axes in figure.axes for x, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:  # below the plot, so that the legend never hides data
        figure.legend(
            list(handles.values()), list(handles), frameon=False, loc="outside lower center", ncols=len(handles)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


class History:
    """Series of returns and other metrics, by name (`train`, `val/return`, …), against the cost of the run so far."""

    def __init__(self) -> None:
        self.unit = "optimizer steps"
        self.points: dict[str, array[float]] = {}  # x, y, x, y, …

    def append(self, name: str, x: float, y: float) -> None:
        points = self.points.setdefault(name, array("d"))
        points.extend((x, y))
        if len(points) > 2 * LONGEST:  # drop every second point, but keep the newest
            xs, ys = self.series(name)
            self.points[name] = array(
                "d", [value for point in zip(xs[::-2], ys[::-2], strict=True) for value in point[::-1]][::-1]
            )

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """x and y of all points in the order in which they were added; empty for an unknown name."""
        points = self.points.get(name, array("d"))
        return points[::2].tolist(), points[1::2].tolist()

    def state_dict(self) -> dict[str, Any]:
        # A tensor, because pickling thousands of Python numbers would take longer than an iteration.
        points = torch.tensor([value for points in self.points.values() for value in points], dtype=torch.float64)
        return {"unit": self.unit, "lengths": {name: len(x) for name, x in self.points.items()}, "points": points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.unit = state["unit"]
        parts = state["points"].split(list(state["lengths"].values()))
        self.points = {name: array("d", part.tolist()) for name, part in zip(state["lengths"], parts, strict=True)}


def draw(history: History, path: Path, title: str) -> Path:
    """Plot the learning curve of `history` to the PNG at `path`. Raises OSError if the file cannot be written."""
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


def numbers_of(batch: Batch) -> Numbers:
    """`reward` and `length` in tokens of each episode, and `true_reward` if the batch has it.

    Returns {} if the batch has no rewards or no lengths.
    """
    if batch.rewards is None or "length" not in batch.metrics:
        return {}
    numbers = {"reward": on_every_row(row_sums(batch.rewards, batch.valid), batch)}
    numbers |= {name: batch.metrics[name] for name in ("length", "true_reward") if name in batch.metrics}
    return {name: x[~followed(batch)].tolist() for name, x in numbers.items()}


def means_by(x: list[float], y: list[float], bins: int = BINS) -> tuple[list[float], list[float]]:
    """Mean x and y of the points in each of at most `bins` bins. All bins have the same integer width in x."""
    first = int(min(x))
    width = -(-(int(max(x)) - first + 1) // bins)
    groups: dict[int, list[tuple[float, float]]] = {}
    for place in sorted(zip(x, y, strict=True)):
        groups.setdefault((int(place[0]) - first) // width, []).append(place)
    xs, ys = ([sum(place[axis] for place in group) / len(group) for group in groups.values()] for axis in (0, 1))
    return xs, ys


def course_of(history: History) -> Numbers:
    """`kl`, `reward`, `cost` and, if available, `true_reward` of each validation that logged all of these."""
    series = {name: dict(zip(*history.series(long), strict=True)) for name, long in COURSE.items()}
    curves = {name: points for name, points in series.items() if points or name in ("kl", "reward")}
    costs = [cost for cost in curves["kl"] if all(cost in points for points in curves.values())]
    return {"cost": costs} | {name: [points[cost] for cost in costs] for name, points in curves.items()}


def draw_replies(numbers: Numbers, path: Path, title: str) -> Path:
    """Scatter plot with one point per reply: each reward against length, and the true reward against the proxy reward.

    Raises OSError if the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    rewards = _labels(numbers)
    pairs = [("length", name) for name in rewards] + [("reward", "true_reward")] * (len(rewards) - 1)
    figure, axes = panels(len(pairs), f"{title}: rewards of sampled replies")
    for panel, (x, y) in zip(axes, pairs, strict=True):
        panel.scatter(numbers[x], numbers[y], label="a reply", **_POINTS)
        if x == "length":
            means = means_by(numbers[x], numbers[y])
            panel.plot(*means, color="#f97316", linewidth=1.8, marker=".", zorder=1, label="mean by length")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel(rewards.get(x, "tokens of the reply"))
        panel.set_ylabel(rewards[y])
    return save(figure, path)


def draw_course(course: Numbers, unit: str, path: Path, title: str) -> Path:
    """Plot with one point per validation: each reward against the KL, coloured by the cost in `unit`.

    Raises OSError if the file cannot be written.
    """
    from matplotlib.ticker import EngFormatter

    rewards = _labels(course)
    figure, axes = panels(len(rewards), f"{title}: reward as the KL grows")
    for panel, (name, label) in zip(axes, rewards.items(), strict=True):
        panel.plot(course["kl"], course[name], color="#94a3b8", linewidth=1, alpha=0.6, zorder=1)
        points = panel.scatter(course["kl"], course[name], c=course["cost"], s=30, cmap="viridis_r", zorder=2)
        panel.set_xlabel("KL from the start, nats per reply")
        panel.set_ylabel(label)
    figure.colorbar(points, ax=axes, label=f"{unit} so far", format=EngFormatter(sep=""))
    return save(figure, path)


_POINTS: dict[str, Any] = {"s": 18, "color": "#2563eb", "alpha": 0.35, "linewidths": 0, "zorder": 2}


def _labels(numbers: Numbers) -> dict[str, str]:
    """Axis label of each reward in `numbers`."""
    if "true_reward" not in numbers:
        return {"reward": "reward"}
    return {"reward": "proxy reward", "true_reward": "true reward"}
