"""Reads back what people said: reviews of a queue as lines of a feedback file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_modules.feedback.people import store, traces
from data_modules.feedback.people.blind import restored
from data_modules.feedback.people.reviews import judgement
from data_modules.feedback.people.traces import Asked
from data_modules.judgements.files import first_ten, write
from data_modules.judgements.parsing import Faults
from data_modules.judgements.schema import Judgement


@dataclass
class Pulled:
    """What there was in a queue."""

    judgements: list[Judgement] = field(default_factory=list)
    waiting: int = 0  # items that nobody has said anything of
    declined: list[str] = field(default_factory=list)  # who declined an item, each time
    faults: list[str] = field(default_factory=list)  # of reviews that cannot be used; their items wait again

    def __str__(self) -> str:
        people = Counter(str(judgement.source) for judgement in self.judgements)
        lines = ["reviews: " + ", ".join(f"{count} by {person}" for person, count in people.most_common())]
        if self.waiting:
            lines.append(f"items that wait for a first review: {self.waiting}")
        if self.declined:
            lines.append(f"items declined: {len(self.declined)}, by {', '.join(sorted(set(self.declined)))}")
        return "\n".join(lines)

    @property
    def reopened(self) -> str:
        """Which reviews cannot be used, and why; the first ten."""
        head = f"reviews that cannot be used, and whose items are open again: {len(self.faults)}"
        return first_ten(head, self.faults)


def pull(
    queue: str, out: str | Path, tracking_uri: str | None = None, experiment: str = store.DEFAULT_EXPERIMENT
) -> Pulled:
    """Writes a line for each review that can be used, whole or not at all: one of each person and item.

    A review is what a person submitted, whatever became of the item since. `source` is the person, and `id` that of
    the line that was asked about, the beginning of the item's digest, and the person. Items with a review that cannot
    be used are reopened.

    Raises:
        ValueError: no such queue, or MLflow refuses. Without a review that can be used no file is written.
    """
    found = Pulled()
    with store.opened(tracking_uri, experiment) as there:
        source = there.queue(queue)
        scale = there.scale(source) or (0.0, 1.0)
        for item in traces.asked(there, source):
            faults = _read(item, scale, found)
            if faults and item.status == "complete":
                traces.reopen(source, item)
            found.faults += faults
    if found.judgements:
        write(out, found.judgements)
    return found


def _read(item: Asked, scale: tuple[float, float], found: Pulled) -> list[str]:
    """Adds what was said of an item; returns what is wrong with it."""
    name = f"{item.record.get('id', 'item')}:{item.digest[:8]}"
    people = dict.fromkeys(answer.by for answer in item.answers)
    faults = []
    for person in people:
        own = [answer for answer in item.answers if answer.by == person]
        try:
            found.judgements.append(restored(judgement(item.record, own, f"{name}:{person}", scale)))
        except Faults as error:
            faults.append(f"{name} by {person}: {error}")
    if not people and item.status == "declined":
        found.declined.append(item.by or "nobody known")
    elif not people and item.status == "complete":
        faults.append(f"{name}: {item.by} completed it without a word")
    elif not people:
        found.waiting += 1
    return faults
