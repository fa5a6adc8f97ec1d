"""Submit the lines of a feedback file to a review queue for people."""

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
class Submission:
    """The counts of a submission to a review queue, and the address of the review page."""

    queue: str
    new: int
    existing: int  # number of items that were in the queue already
    page: str  # address where people review the items

    def __str__(self) -> str:
        return f"queue {self.queue!r}: {self.new} new items, {self.existing} already in it\nreview: {self.page}"


def ask(
    path: str | Path,
    queue: str,
    tracking_uri: str | None = None,
    scale: Scale = (0.0, 1.0),
    reviewers: Sequence[str] = (),
    experiment: str = store.DEFAULT_EXPERIMENT,
    blind: bool = False,
) -> Submission:
    """Submit each line of a feedback file to a review queue as one item, without the feedback in the line.

    If a line has one response, people give a score, a critique and the expected response. If it has several, people
    rank them. Items that are already in the queue stay as they are, so the same file can be submitted again.

    Args:
        queue: name of the queue, unique in the experiment. The queue is created if it does not exist.
        tracking_uri: the MLflow store; by default the store that runs are logged to.
        scale: lowest and highest score that people can give.
        reviewers: names of at most ten users who may review; by default everybody who can see the queue.
        blind: show responses in an order that hides which policy wrote which response; `pull` restores the order. Lines
            that name the policies (`meta.replies_of`) are always blind.
    Raises:
        ValueError: the file has an error, a text is too long for the review page, the queue has different questions, or
            MLflow reports an error.
    """
    if not scale[0] < scale[1]:
        raise ValueError(f"scale: got {scale[0]:g} to {scale[1]:g}, the first must be lower than the second")
    lines = read(path, (-math.inf, math.inf))
    to_review = items(each_line(lines, lambda line: shuffled(line) if blind or names_policies(line) else line))
    with store.opened(tracking_uri, experiment, create=True) as mlflow_store:
        target = mlflow_store.queue_for(queue, questions(to_review, scale), scale, reviewers)
        new = traces.put(mlflow_store, target, to_review, path)
        return Submission(queue, new, len(to_review) - new, mlflow_store.page(target))
