"""One experiment of an MLflow store: its review queues and their questions.

MLflow is imported when it is first used, here and in `traces`, and nowhere else: that takes seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from data_modules.feedback.people.database import file_of, make
from data_modules.feedback.people.items import Question, field_of
from data_modules.judgements.fields import Scale

if TYPE_CHECKING:
    from mlflow.genai.label_schemas import LabelSchema
    from mlflow.genai.review_queues import ReviewQueue

DEFAULT_URI, DEFAULT_EXPERIMENT = "sqlite:///outputs/mlflow.db", "lightning_nlf"  # those of a run
_VARIABLE = "MLFLOW_TRACKING_URI"
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its own seven take minutes to say that nobody answers
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",  # what goes into a queue must be there
}


@contextlib.contextmanager
def opened(uri: str | None, experiment: str, create: bool = False) -> Iterator[Store]:
    """The experiment, for MLflow's own functions too.

    Args: uri: None: where runs go, the variable MLFLOW_TRACKING_URI or outputs/mlflow.db; create: where it is missing.
    Raises:
        ValueError: there is no such store or experiment, it does not answer, or it refuses something.
    """
    uri = uri or os.environ.get(_VARIABLE) or DEFAULT_URI
    path = file_of(uri)
    if not create and path is not None and not path.is_file():
        raise ValueError(f"tracking_uri: there is no data base {path}")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("alembic", "mlflow.store.db.utils"):  # a new data base announces each of its migrations otherwise
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if path is not None and not path.exists():
            make(path)
        with _at(uri):
            yield Store(uri, experiment, _experiment_id(uri, experiment, create))
    except SQLAlchemyError as error:
        cause = str(error).splitlines()[0][:300]
        raise ValueError(
            f"tracking_uri: {shown_uri(uri)} cannot be read: {cause}; if it was left half-made, move it aside"
        ) from error
    except MlflowException as error:
        cause = shown_uri(str(error).splitlines()[0])[:300]
        raise ValueError(f"tracking_uri: {shown_uri(uri)} says: {cause}") from error


@contextlib.contextmanager
def _at(uri: str) -> Iterator[None]:
    """MLflow's own functions go there within, and then wherever they went before."""
    import mlflow

    variable = os.environ.pop(_VARIABLE, None)  # which MLflow writes to, and which hides what else was set
    before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    try:
        mlflow.set_tracking_uri(uri)
        yield
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop(_VARIABLE, None)
        if variable is not None:
            os.environ[_VARIABLE] = variable


def shown_uri(uri: str) -> str:
    """Without a password; so is a text that names one."""
    return re.sub(r"//[^/\s]*@", "//", uri).rstrip("/")


def _experiment_id(uri: str, name: str, create: bool) -> str:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    experiment = client.get_experiment_by_name(name)
    if experiment is None and not create:
        raise ValueError(f"experiment: {shown_uri(uri)} has no {name!r}")
    if experiment is None:
        path = file_of(uri)  # whose artifacts would go into the working folder; MLflow decodes their place
        try:
            return client.create_experiment(name, quote(str(path.parent / "mlartifacts")) if path else None)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # the run's own logger was faster
            if experiment is None:
                raise
    return experiment.experiment_id


@dataclass(frozen=True)
class Store:
    """An experiment, within `opened`."""

    uri: str
    experiment: str  # its name
    id: str

    def queue(self, name: str) -> ReviewQueue:
        """Raises ValueError: there is no queue of this name; says which there are."""
        queues = self._queues()
        if name not in queues:
            known = ", ".join(queues) or "none yet"
            raise ValueError(f"queue: {self.experiment!r} at {shown_uri(self.uri)} has no {name!r}; there is {known}")
        return queues[name]

    def queue_for(
        self, name: str, questions: Sequence[Question], scale: Scale, reviewers: Sequence[str]
    ) -> ReviewQueue:
        """The queue of this name, made where it is missing; reviewers are added to those it has.

        Raises:
            ValueError: it is there with other questions.
        """
        from mlflow.genai import review_queues

        schemas = [self._schema_for(question, scale).schema_id for question in reversed(questions)]  # the last on top
        queue = self._queues().get(name)
        if queue is None:
            return review_queues.create_review_queue(
                name, queue_type="custom", users=list(reviewers), schema_ids=schemas, experiment_id=self.id
            )
        if set(queue.schema_ids) != set(schemas):
            there = ", ".join(schema.name for schema in self._schemas(queue))
            wanted = ", ".join(question.name for question in questions)
            raise ValueError(f"queue: {name!r} asks for {there}; these items need {wanted}: name another queue")
        if missing := {reviewer.strip().lower() for reviewer in reviewers} - set(queue.users):
            return review_queues.update_review_queue(queue.queue_id, users=[*queue.users, *sorted(missing)])
        return queue

    def scale(self, queue: ReviewQueue) -> Scale | None:
        """That of the queue's scores; None where it asks for none."""
        boxes: list[Any] = [schema.input for schema in self._schemas(queue) if field_of(schema.name) == "score"]
        return (boxes[0].min_value, boxes[0].max_value) if boxes else None

    @property
    def address(self) -> str:
        """Of the pages; for a data base the one that a server of it has by default."""
        return shown_uri(self.uri) if self.uri.startswith("http") else "http://127.0.0.1:5000"

    def page(self, queue: ReviewQueue) -> str:
        """Where a person reviews the queue."""
        query = f"selectedQueueId={queue.queue_id}&startReview=true"
        return f"{self.address}/#/experiments/{self.id}/review-queue?{query}"

    def _queues(self) -> dict[str, ReviewQueue]:
        from mlflow.genai.review_queues import list_review_queues

        return {queue.name: queue for queue in pages(list_review_queues, experiment_id=self.id)}

    def _schemas(self, queue: ReviewQueue) -> list[LabelSchema]:
        from mlflow.genai.label_schemas import get_label_schema

        return [get_label_schema(schema_id=schema) for schema in queue.schema_ids]

    def _schema_for(self, question: Question, scale: Scale) -> LabelSchema:
        """Made where it is missing: MLflow refuses a second one of a name."""
        from mlflow.genai import label_schemas

        box = label_schemas.InputNumeric(*scale) if question.field == "score" else label_schemas.InputText()
        kind: Any = "expectation" if question.field == "expected" else "feedback"
        for there in pages(label_schemas.list_label_schemas, experiment_id=self.id):
            if there.name == question.name:
                if there.type != kind or there.input != box:
                    raise ValueError(
                        f"experiment: {self.experiment!r} has another question {question.name!r}; rename that one, or "
                        "use another experiment"
                    )
                return there
        return label_schemas.create_label_schema(
            question.name,
            type=kind,
            input=box,
            instruction=question.instruction,
            enable_comment=question.comment,
            experiment_id=self.id,
        )


def pages(ask: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """All that a function of MLflow lists, page by page."""
    token = None
    while True:
        found = ask(*args, **kwargs, page_token=token)
        yield from found
        token = found.token
        if not token:
            return
