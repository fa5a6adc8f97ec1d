"""The items of a review queue: traces that show them, and what people said of each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from data_modules.feedback.people.items import Item, field_of
from data_modules.feedback.people.reviews import Answer
from data_modules.feedback.people.store import Store, pages, shown_uri

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from mlflow.genai.review_queues import ReviewQueue

QUEUE, DIGEST, FILE = "feedback_queue", "feedback_item", "feedback_file"  # tags
RECORD = "feedback.record"  # of the span: the line of a feedback file that the item is
PAGE = 100


@dataclass(frozen=True)
class Asked:
    """An item of a queue, and what was said of it so far."""

    trace: str  # its id
    digest: str
    record: dict[str, Any]
    status: str  # pending, complete or declined
    by: str | None  # who completed or declined it
    answers: tuple[Answer, ...]


def put(store: Store, queue: ReviewQueue, items: Sequence[Item], file: str | Path) -> int:
    """Traces of the items that are not there yet, attached to the queue.

    Args: file: that the items are from, which says of what run.
    Returns: how many these were.
    """
    from mlflow.genai.review_queues import add_items_to_review_queue

    there = {trace.info.tags[DIGEST] for trace in _traces(store, queue)}
    fresh = [item for item in items if item.digest not in there]
    for item in fresh:
        _log(store, queue, item, file)
    traces = _traces(store, queue)
    if lost := {item.digest for item in items} - {trace.info.tags[DIGEST] for trace in traces}:
        # MLflow only warns of a trace that it could not send.
        raise ValueError(f"tracking_uri: {shown_uri(store.uri)} took {len(items) - len(lost)} of {len(items)} items")
    # Also those that were there: an attempt before may have ended between the two.
    for first in range(0, len(traces), PAGE):
        some = [trace.info.trace_id for trace in traces[first : first + PAGE]]
        add_items_to_review_queue(queue.queue_id, item_ids=some)
    return len(fresh)


def asked(store: Store, queue: ReviewQueue) -> list[Asked]:
    """What `put` has put into the queue, in that order; without what somebody took out of it."""
    from mlflow.genai.review_queues import list_review_queue_items

    entries = {entry.item_id: entry for entry in pages(list_review_queue_items, queue.queue_id)}
    return [
        Asked(
            trace=entry.item_id,
            digest=trace.info.tags[DIGEST],
            record=cast("dict[str, Any]", trace.data.spans[0].get_attribute(RECORD)),
            status=str(entry.status),
            by=entry.completed_by,
            answers=tuple(_answers(trace)),
        )
        for trace in _traces(store, queue, spans=True)
        if (entry := entries.get(trace.info.trace_id)) is not None
    ]


def reopen(queue: ReviewQueue, item: Asked) -> None:
    """Back among those that wait for a review."""
    from mlflow.genai.review_queues import set_review_queue_item_status

    set_review_queue_item_status(queue.queue_id, item_id=item.trace, status="pending")


def _log(store: Store, queue: ReviewQueue, item: Item, file: str | Path) -> None:
    import mlflow
    from mlflow.entities.trace_location import MlflowExperimentLocation

    where = MlflowExperimentLocation(store.id)
    with _unseeded(), mlflow.start_span(item.record.get("id", "item"), trace_destination=where) as span:
        span.set_inputs({"prompt": item.record["prompt"]})
        outputs: dict[str, Any] = {"responses": item.record["responses"]}
        response = item.response
        if item.picture is not None:
            outputs["episode"], shown = _picture(store, item.picture, span.trace_id)
            response = f"{shown}\n\n{response}"
        span.set_outputs(outputs)
        span.set_attribute(RECORD, item.record)
        tags = {QUEUE: queue.queue_id, DIGEST: item.digest, FILE: str(file)}
        # Previews by hand: what MLflow makes of inputs and outputs ends after 1,000 characters.
        mlflow.update_current_trace(tags, request_preview=item.request, response_preview=response)


@contextmanager
def _unseeded() -> Iterator[None]:
    """Inside, Python draws what no run drew before: a trace's id is random, and runs of one seed must not share it."""
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def _picture(store: Store, path: Path, trace: str) -> tuple[Any, str]:
    """The file as an attachment, and Markdown that shows it; on a page of another address the words stand there."""
    from mlflow.tracing.attachments import Attachment

    picture, words = Attachment.from_file(path), "The episode plays under View full trace"
    query = f"request_id={quote(trace)}&path={quote(picture.id)}"
    return picture, f"![{words}]({store.address}/ajax-api/2.0/mlflow/get-trace-artifact?{query})"


def _traces(store: Store, queue: ReviewQueue, spans: bool = False) -> list[Trace]:
    """Those of the queue's items, the oldest first."""
    from mlflow import MlflowClient

    found = pages(
        MlflowClient().search_traces,
        locations=[store.id],
        filter_string=f"tags.{QUEUE} = '{queue.queue_id}'",
        max_results=PAGE,
        order_by=["timestamp_ms ASC"],
        include_spans=spans,
    )
    return list(found)


def _answers(trace: Trace) -> Iterator[Answer]:
    """The last of each person's to each question: a server keeps those before it, and says that they are not valid."""
    last: dict[tuple[str, str], Any] = {}
    for answer in sorted(trace.info.assessments or [], key=lambda answer: answer.last_update_time_ms or 0):
        if answer.source.source_type == "HUMAN" and answer.valid is not False:
            last[answer.source.source_id or "nobody known", answer.name] = answer
    for (by, name), answer in last.items():
        if field := field_of(name):
            yield Answer(field, answer.value, answer.rationale, by)
