"""Items of a review queue as MLflow traces, with people's answers."""

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
RECORD = "feedback.record"  # attribute of the span that holds the item's line of a feedback file
PAGE = 100


@dataclass(frozen=True)
class QueueItem:
    """An item of a queue, with all answers so far."""

    trace: str  # trace id
    digest: str
    record: dict[str, Any]
    status: str  # pending, complete or declined
    by: str | None  # the person who completed or declined the item
    answers: tuple[Answer, ...]


def put(store: Store, queue: ReviewQueue, items: Sequence[Item], file: str | Path) -> int:
    """Log a trace for each item that the queue does not have yet, and attach the trace to the queue.

    Args: file: the file that the items come from, which shows the run.
    Returns: number of new items.
    """
    from mlflow.genai.review_queues import add_items_to_review_queue

    digests = {trace.info.tags[DIGEST] for trace in _traces(store, queue)}
    fresh = [item for item in items if item.digest not in digests]
    for item in fresh:
        _log(store, queue, item, file)
    traces = _traces(store, queue)
    if missing := {item.digest for item in items} - {trace.info.tags[DIGEST] for trace in traces}:
        # MLflow only warns if it cannot send a trace.
        raise ValueError(
            f"tracking_uri: {shown_uri(store.uri)} stored only {len(items) - len(missing)} of {len(items)} items; "
            "run the command again"
        )
    # Includes existing traces: an earlier attempt may have been interrupted between logging and attaching.
    for first in range(0, len(traces), PAGE):
        trace_ids = [trace.info.trace_id for trace in traces[first : first + PAGE]]
        add_items_to_review_queue(queue.queue_id, item_ids=trace_ids)
    return len(fresh)


def queue_items(store: Store, queue: ReviewQueue) -> list[QueueItem]:
    """The items that `put` added to the queue, in that order, except items that were removed since."""
    from mlflow.genai.review_queues import list_review_queue_items

    entries = {entry.item_id: entry for entry in pages(list_review_queue_items, queue.queue_id)}
    return [
        QueueItem(
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


def reopen(queue: ReviewQueue, item: QueueItem) -> None:
    """Mark an item as waiting for a review again."""
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
            outputs["episode"], image = _picture(store, item.picture, span.trace_id)
            response = f"{image}\n\n{response}"
        span.set_outputs(outputs)
        span.set_attribute(RECORD, item.record)
        tags = {QUEUE: queue.queue_id, DIGEST: item.digest, FILE: str(file)}
        # Set the previews here, because MLflow truncates those it derives from inputs and outputs at 1,000 characters.
        mlflow.update_current_trace(tags, request_preview=item.request, response_preview=response)


@contextmanager
def _unseeded() -> Iterator[None]:
    """Context with a reseeded Python generator, because random trace ids must differ between runs with one seed."""
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def _picture(store: Store, path: Path, trace: str) -> tuple[Any, str]:
    """A file as attachment, and Markdown that shows it, or a text on a page elsewhere."""
    from mlflow.tracing.attachments import Attachment

    picture, words = Attachment.from_file(path), "The episode plays under View full trace"
    query = f"request_id={quote(trace)}&path={quote(picture.id)}"
    return picture, f"![{words}]({store.address}/ajax-api/2.0/mlflow/get-trace-artifact?{query})"


def _traces(store: Store, queue: ReviewQueue, spans: bool = False) -> list[Trace]:
    """The traces of the queue's items, oldest first."""
    from mlflow import MlflowClient

    traces = pages(
        MlflowClient().search_traces,
        locations=[store.id],
        filter_string=f"tags.{QUEUE} = '{queue.queue_id}'",
        max_results=PAGE,
        order_by=["timestamp_ms ASC"],
        include_spans=spans,
    )
    return list(traces)


def _answers(trace: Trace) -> Iterator[Answer]:
    """Each person's latest answer to each question. A server keeps earlier answers and marks them as invalid."""
    last: dict[tuple[str, str], Any] = {}
    for answer in sorted(trace.info.assessments or [], key=lambda answer: answer.last_update_time_ms or 0):
        if answer.source.source_type == "HUMAN" and answer.valid is not False:
            last[answer.source.source_id or "unknown person", answer.name] = answer
    for (by, name), answer in last.items():
        if field := field_of(name):
            yield Answer(field, answer.value, answer.rationale, by)
