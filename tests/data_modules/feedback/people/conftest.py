"""A data base of MLflow without a server, an experiment in it for each test, and a person who reviews."""

from __future__ import annotations

import json

import pytest

from data_modules.feedback.people import traces
from data_modules.feedback.people.store import opened

LEVEL = {
    "id": "level-1",
    "prompt": "is beef high in iron ?",
    "responses": ["beef is high in iron , as per a blog ."],
    "score": 0.6,
    "source": "rule",
    "meta": {"finished": [True], "tokens": [[4, 5, 6, 1]], "tokenizer": "abc", "empty": 0},
}
PAIR = {"id": "pair-1", "prompt": "which has more iron ,\nbeef or kale ?", "responses": ["beef .", "kale .", "both ."]}


@pytest.fixture(scope="session")
def data_base(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def place(data_base, request, monkeypatch) -> dict[str, str]:
    """Where `ask` and `pull` go: an experiment that no other test uses."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return {"tracking_uri": data_base, "experiment": request.node.nodeid}


@pytest.fixture
def lines(tmp_path):
    """Writes a feedback file of such records."""

    def write(*records, name="replies.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


class Person:
    """Answers as the review page does: an assessment for each question that has an answer, then the item is done."""

    def __init__(self, place: dict[str, str], queue: str = "q") -> None:
        self.place, self.queue = place, queue

    def reviews(self, id: str, by: str = "default", comment: str | None = None, **answers) -> None:
        """Args: answers: by the name of the question; `score` is of the only one whose name begins so."""
        import mlflow
        from mlflow.entities import AssessmentSource
        from mlflow.genai.review_queues import set_review_queue_item_status

        with opened(self.place["tracking_uri"], self.place["experiment"]) as store:
            queue = store.queue(self.queue)
            item = next(item for item in traces.asked(store, queue) if item.record["id"] == id)
            person = AssessmentSource("HUMAN", by)
            for name, value in answers.items():
                name = {"score": "score 0 to 1"}.get(name, name)
                if name.startswith("expected"):
                    mlflow.log_expectation(trace_id=item.trace, name=name, value=value, source=person)
                else:
                    mlflow.log_feedback(
                        trace_id=item.trace, name=name, value=value, source=person, rationale=comment
                    )
            set_review_queue_item_status(queue.queue_id, item_id=item.trace, status="complete", completed_by=by)

    def declines(self, id: str, by: str) -> None:
        from mlflow.genai.review_queues import set_review_queue_item_status

        with opened(self.place["tracking_uri"], self.place["experiment"]) as store:
            queue = store.queue(self.queue)
            item = next(item for item in traces.asked(store, queue) if item.record["id"] == id)
            set_review_queue_item_status(queue.queue_id, item_id=item.trace, status="declined", completed_by=by)

    def sees(self) -> dict[str, str]:
        """The status of each item."""
        with opened(self.place["tracking_uri"], self.place["experiment"]) as store:
            return {item.record["id"]: item.status for item in traces.asked(store, store.queue(self.queue))}


@pytest.fixture
def person(place) -> Person:
    return Person(place)
