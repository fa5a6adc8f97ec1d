"""Read back people's reviews from a queue, as lines of a feedback file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_modules.feedback.people import store, traces
from data_modules.feedback.people.blind import restored
from data_modules.feedback.people.reviews import judgement
from data_modules.feedback.people.traces import QueueItem
from data_modules.judgements.files import first_ten, write
from data_modules.judgements.parsing import Faults
from data_modules.judgements.schema import Judgement


@dataclass
class PulledReviews:
    """The reviews in a queue: usable reviews, unusable reviews with their errors, and items without a review."""

    judgements: list[Judgement] = field(default_factory=list)
    waiting: int = 0  # number of items without a review
    declined: list[str] = field(default_factory=list)  # the reviewer who declined, for each declined item
    faults: list[str] = field(default_factory=list)  # errors in unusable reviews; their items are reopened

    def __str__(self) -> str:
        people = Counter(str(judgement.source) for judgement in self.judgements)
        lines = ["reviews: " + ", ".join(f"{count} by {person}" for person, count in people.most_common())]
        if self.waiting:
            lines.append(f"items without a review: {self.waiting}")
        if self.declined:
            lines.append(f"items declined: {len(self.declined)}, by {', '.join(sorted(set(self.declined)))}")
        return "\n".join(lines)

    @property
    def reopened(self) -> str:
        """A text with the first ten unusable reviews and their errors."""
        head = f"unusable reviews, whose items are open again: {len(self.faults)}"
        return first_ten(head, self.faults)


def pull(
    queue: str, out: str | Path, tracking_uri: str | None = None, experiment: str = store.DEFAULT_EXPERIMENT
) -> PulledReviews:
    """Write a feedback file with one line for each usable review. A review is from one person about one item.

    A submitted review counts even if its item was reopened later. `source` of a line is the person. `id` joins the id
    of the reviewed line, the beginning of the item's digest, and the person. Items with an unusable review are
    reopened. The file is written completely or not at all.

    Raises:
        ValueError: the queue does not exist, or MLflow reports an error. Without a usable review no file is written.
    """
    reviews = PulledReviews()
    with store.opened(tracking_uri, experiment) as mlflow_store:
        source = mlflow_store.queue(queue)
        scale = mlflow_store.scale(source) or (0.0, 1.0)
        for item in traces.queue_items(mlflow_store, source):
            faults = _read(item, scale, reviews)
            if faults and item.status == "complete":
                traces.reopen(source, item)
            reviews.faults += faults
    if reviews.judgements:
        write(out, reviews.judgements)
    return reviews


def _read(item: QueueItem, scale: tuple[float, float], reviews: PulledReviews) -> list[str]:
    """Add the reviews of an item to `reviews`, and return the errors in these reviews."""
    name = f"{item.record.get('id', 'item')}:{item.digest[:8]}"
    people = dict.fromkeys(answer.by for answer in item.answers)
    faults = []
    for person in people:
        person_answers = [answer for answer in item.answers if answer.by == person]
        try:
            reviews.judgements.append(restored(judgement(item.record, person_answers, f"{name}:{person}", scale)))
        except Faults as error:
            faults.append(f"{name} by {person}: {error}")
    if not people and item.status == "declined":
        reviews.declined.append(item.by or "unknown person")
    elif not people and item.status == "complete":
        faults.append(f"{name}: {item.by} completed it without an answer")
    elif not people:
        reviews.waiting += 1
    return faults
