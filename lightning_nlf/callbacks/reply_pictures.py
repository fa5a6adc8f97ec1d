"""What replies earn, in pictures: by their length, the true reward by the proxy that is paid, both as the KL grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_nlf.batch import Batch
from lightning_nlf.callbacks.drawing import panels, save
from lightning_nlf.callbacks.learning_curve import History
from lightning_nlf.functional import followed, on_every_row, row_sums

Numbers = dict[str, list[float]]  # by name, all of one length

BINS = 20  # means by length: more would be of a few replies each
COURSE = {"kl": "val/kl_sampled", "reward": "val/return_sampled", "true_reward": "val/true_reward_sampled"}


def numbers_of(batch: Batch) -> Numbers:
    """`reward` and `length` in tokens of each episode; and `true_reward`, where another than the rule pays.

    Nothing where the batch has no rewards or does not say how long replies are.
    """
    if batch.rewards is None or "length" not in batch.extra:
        return {}
    found = {"reward": on_every_row(row_sums(batch.rewards, batch.valid), batch)}
    found |= {name: batch.extra[name] for name in ("length", "true_reward") if name in batch.extra}
    return {name: x[~followed(batch)].tolist() for name, x in found.items()}


def means_by(x: list[float], y: list[float], bins: int = BINS) -> tuple[list[float], list[float]]:
    """The mean x and y of the points in each of at most `bins` bins, all the same whole number of x wide."""
    first = int(min(x))
    width = -(-(int(max(x)) - first + 1) // bins)
    found: dict[int, list[tuple[float, float]]] = {}
    for place in sorted(zip(x, y, strict=True)):
        found.setdefault((int(place[0]) - first) // width, []).append(place)
    xs, ys = ([sum(place[axis] for place in some) / len(some) for some in found.values()] for axis in (0, 1))
    return xs, ys


def course_of(history: History) -> Numbers:
    """`kl`, `reward`, where there is one `true_reward`, and the `cost` so far of each validation that knew them all."""
    series = {name: dict(zip(*history.series(long), strict=True)) for name, long in COURSE.items()}
    known = {name: own for name, own in series.items() if own or name == "kl"}
    costs = [cost for cost in known["kl"] if all(cost in own for own in known.values())]
    return {"cost": costs} | {name: [own[cost] for cost in costs] for name, own in known.items()}


def draw_replies(numbers: Numbers, path: Path, title: str) -> Path:
    """A point a reply: each reward by length, and the true one by the proxy. Raises OSError as `save`."""
    from matplotlib.ticker import MaxNLocator

    rewards = _labels(numbers)
    pairs = [("length", name) for name in rewards] + [("reward", "true_reward")] * (len(rewards) - 1)
    figure, axes = panels(len(pairs), f"{title}: what sampled replies earn")
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
    """A point a validation: each reward by the KL, coloured by the cost in `unit`. Raises OSError as `save`."""
    from matplotlib.ticker import EngFormatter

    rewards = _labels(course)
    figure, axes = panels(len(rewards), f"{title}: reward as the KL grows")
    for panel, (name, label) in zip(axes, rewards.items(), strict=True):
        panel.plot(course["kl"], course[name], color="#94a3b8", linewidth=1, alpha=0.6, zorder=1)
        points = panel.scatter(course["kl"], course[name], c=course["cost"], s=30, cmap="viridis_r", zorder=2)
        panel.set_xlabel("KL from the start, nats a reply")
        panel.set_ylabel(label)
    figure.colorbar(points, ax=axes, label=f"{unit} so far", format=EngFormatter(sep=""))
    return save(figure, path)


_POINTS: dict[str, Any] = {"s": 18, "color": "#2563eb", "alpha": 0.35, "linewidths": 0, "zorder": 2}


def _labels(numbers: Numbers) -> dict[str, str]:
    """Of the rewards that are there."""
    if "true_reward" not in numbers:
        return {"reward": "reward"}
    return {"reward": "proxy reward", "true_reward": "true reward"}
