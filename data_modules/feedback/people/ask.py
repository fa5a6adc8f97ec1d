"""Puts the lines of a feedback file in front of people: what `predict` wrote, or any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_modules.feedback.people import store, traces
from data_modules.feedback.people.blind import names_policies, shuffled
from data_modules.feedback.people.items import items, questions
from data_modules.judgements.fields import Scale
from data_modules.judgements.files import each_line, read


@dataclass(frozen=True)
class Put:
    """What was put into a queue."""

    queue: str
    new: int
    there: int  # items that were in it already
    page: str  # where they are reviewed

    def __str__(self) -> str:
        return f"queue {self.queue!r}: new items {self.new}, there already {self.there}\nreview: {self.page}"


def ask(
    path: str | Path,
    queue: str,
    tracking_uri: str | None = None,
    scale: Scale = (0.0, 1.0),
    reviewers: Sequence[str] = (),
    experiment: str = store.DEFAULT_EXPERIMENT,
    blind: bool = False,
) -> Put:
    """One item of a review queue for each line of a feedback file; what the line says of its responses is not shown.

    A lone response is given a score, a critique and the expected response; several are put in order. An item that is
    in the queue stays as it is, so that the same file can be asked about again.

    Args:
        queue: its name, unique in the experiment; made where it is missing.
        tracking_uri: of the MLflow store; by default where runs go.
        scale: lowest and highest score that people may give.
        reviewers: who may review, at most ten; without them, everybody who can see the queue.
        blind: several responses stand in an order by their digest, which `pull` undoes, so that nobody sees which
            policy replied what. Lines that name their policies (`meta.replies_of`) are always asked so.
    Raises:
        ValueError: the file is wrong, a text is too long to be seen, the queue has other questions, or MLflow refuses.
    """
    if not scale[0] < scale[1]:
        raise ValueError(f"scale: got {scale[0]:g} to {scale[1]:g}, must go upwards")
    lines = read(path, (-math.inf, math.inf))
    to_review = items(each_line(lines, lambda line: shuffled(line) if blind or names_policies(line) else line))
    with store.opened(tracking_uri, experiment, create=True) as there:
        target = there.queue_for(queue, questions(to_review, scale), scale, reviewers)
        new = traces.put(there, target, to_review, path)
        return Put(queue, new, len(to_review) - new, there.page(target))
