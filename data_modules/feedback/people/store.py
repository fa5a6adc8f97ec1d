"""Review queues of an MLflow experiment, and the questions of each queue.

Only this module and `traces` import MLflow, and only on first use, because the import takes seconds.
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

DEFAULT_URI, DEFAULT_EXPERIMENT = "sqlite:///outputs/mlflow.db", "lightning_nlf"  # same as in a run
_VARIABLE = "MLFLOW_TRACKING_URI"
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # with the default of seven, an unreachable server takes minutes to report
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",  # a trace must exist before it goes into a queue
}


@contextlib.contextmanager
def opened(uri: str | None, experiment: str, create: bool = False) -> Iterator[Store]:
    """Open an experiment; inside the context MLflow's module-level functions use it too.

    Args: uri: None = MLFLOW_TRACKING_URI or outputs/mlflow.db, as in a run; create: create a missing store or
        experiment.
    Raises:
        ValueError: the store or the experiment does not exist, or the store does not answer or reports an error.
    """
    uri = uri or os.environ.get(_VARIABLE) or DEFAULT_URI
    path = file_of(uri)
    if not create and path is not None and not path.is_file():
        raise ValueError(f"tracking_uri: the database {path} does not exist")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("alembic", "mlflow.store.db.utils"):  # otherwise a new database logs every migration
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if path is not None and not path.exists():
            make(path)
        with _at(uri):
            yield Store(uri, experiment, _experiment_id(uri, experiment, create))
    except SQLAlchemyError as error:
        cause = str(error).splitlines()[0][:300]
        raise ValueError(
            f"tracking_uri: cannot read {shown_uri(uri)}: {cause}; if it is incomplete, move it away"
        ) from error
    except MlflowException as error:
        cause = shown_uri(str(error).splitlines()[0])[:300]
        raise ValueError(f"tracking_uri: {shown_uri(uri)} reports: {cause}") from error


@contextlib.contextmanager
def _at(uri: str) -> Iterator[None]:
    """Point MLflow's module-level functions to a store, and restore the previous store at the end."""
    import mlflow

    variable = os.environ.pop(
        _VARIABLE, None
    )  # MLflow overwrites the variable, and the variable would hide the URI set in code
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
    """Remove the password from a URI, or from a text that includes a URI."""
    return re.sub(r"//[^/\s]*@", "//", uri).rstrip("/")


def _experiment_id(uri: str, name: str, create: bool) -> str:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    experiment = client.get_experiment_by_name(name)
    if experiment is None and not create:
        raise ValueError(f"experiment: {shown_uri(uri)} has no experiment {name!r}")
    if experiment is None:
        path = file_of(uri)  # artifacts go beside it, not into the working folder; MLflow unquotes the path
        try:
            return client.create_experiment(name, quote(str(path.parent / "mlartifacts")) if path else None)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # a run's logger was faster
            if experiment is None:
                raise
    return experiment.experiment_id


@dataclass(frozen=True)
class Store:
    """An opened MLflow experiment; valid only inside the context of `opened`."""

    uri: str
    experiment: str  # its name
    id: str

    def queue(self, name: str) -> ReviewQueue:
        """The queue with this name.  Raises ValueError: it does not exist; the message lists the existing queues."""
        queues = self._queues()
        if name not in queues:
            names = ", ".join(queues) or "none yet"
            raise ValueError(
                f"queue: {self.experiment!r} at {shown_uri(self.uri)} has no queue {name!r}; its queues: {names}"
            )
        return queues[name]

    def queue_for(
        self, name: str, questions: Sequence[Question], scale: Scale, reviewers: Sequence[str]
    ) -> ReviewQueue:
        """The queue with this name, created if it does not exist. The reviewers are added to the queue's reviewers.

        Raises:
            ValueError: the queue exists with different questions.
        """
        from mlflow.genai import review_queues

        schemas = [
            self._schema_for(question, scale).schema_id for question in reversed(questions)
        ]  # the page shows the last one on top
        queue = self._queues().get(name)
        if queue is None:
            return review_queues.create_review_queue(
                name, queue_type="custom", users=list(reviewers), schema_ids=schemas, experiment_id=self.id
            )
        if set(queue.schema_ids) != set(schemas):
            current = ", ".join(schema.name for schema in self._schemas(queue))
            needed = ", ".join(question.name for question in questions)
            raise ValueError(f"queue: {name!r} asks for {current}, but these items need {needed}; use another queue")
        if missing := {reviewer.strip().lower() for reviewer in reviewers} - set(queue.users):
            return review_queues.update_review_queue(queue.queue_id, users=[*queue.users, *sorted(missing)])
        return queue

    def scale(self, queue: ReviewQueue) -> Scale | None:
        """The scale of the queue's scores; None if no question of the queue asks for a score."""
        boxes: list[Any] = [schema.input for schema in self._schemas(queue) if field_of(schema.name) == "score"]
        return (boxes[0].min_value, boxes[0].max_value) if boxes else None

    @property
    def address(self) -> str:
        """The address of MLflow's pages; for a database, the default address of an MLflow server."""
        return shown_uri(self.uri) if self.uri.startswith("http") else "http://127.0.0.1:5000"

    def page(self, queue: ReviewQueue) -> str:
        """The address of the queue's review page."""
        query = f"selectedQueueId={queue.queue_id}&startReview=true"
        return f"{self.address}/#/experiments/{self.id}/review-queue?{query}"

    def _queues(self) -> dict[str, ReviewQueue]:
        from mlflow.genai.review_queues import list_review_queues

        return {queue.name: queue for queue in pages(list_review_queues, experiment_id=self.id)}

    def _schemas(self, queue: ReviewQueue) -> list[LabelSchema]:
        from mlflow.genai.label_schemas import get_label_schema

        return [get_label_schema(schema_id=schema) for schema in queue.schema_ids]

    def _schema_for(self, question: Question, scale: Scale) -> LabelSchema:
        """The label schema of a question, created only if missing, because MLflow refuses two with the same name."""
        from mlflow.genai import label_schemas

        box = label_schemas.InputNumeric(*scale) if question.field == "score" else label_schemas.InputText()
        kind: Any = "expectation" if question.field == "expected" else "feedback"
        for schema in pages(label_schemas.list_label_schemas, experiment_id=self.id):
            if schema.name == question.name:
                if schema.type != kind or schema.input != box:
                    raise ValueError(
                        f"experiment: {self.experiment!r} has a different question named {question.name!r}; rename it, "
                        "or use another experiment"
                    )
                return schema
        return label_schemas.create_label_schema(
            question.name,
            type=kind,
            input=box,
            instruction=question.instruction,
            enable_comment=question.comment,
            experiment_id=self.id,
        )


def pages(ask: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Yield all results of a paginated MLflow function."""
    token = None
    while True:
        page = ask(*args, **kwargs, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
