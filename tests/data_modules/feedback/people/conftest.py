"""Fixtures: an MLflow database without a server, an experiment for each test, a simulated reviewer, and a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

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
    """Store and experiment for `ask` and `pull`; no other test uses the experiment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return {"tracking_uri": data_base, "experiment": request.node.nodeid}


@pytest.fixture
def lines(tmp_path):
    """Factory of feedback files."""

    def write(*records, name="replies.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


class Person:
    """Reviewer that writes what the review page writes: an assessment for each answer, then the status of the item."""

    def __init__(self, place: dict[str, str], queue: str = "q") -> None:
        self.place, self.queue = place, queue

    def reviews(self, id: str, by: str = "default", comment: str | None = None, **answers) -> None:
        """Args: answers: by the name of the question; `score` means the only question whose name begins with it."""
        import mlflow
        from mlflow.entities import AssessmentSource
        from mlflow.genai.review_queues import set_review_queue_item_status

        with opened(self.place["tracking_uri"], self.place["experiment"]) as store:
            queue = store.queue(self.queue)
            item = next(item for item in traces.queue_items(store, queue) if item.record["id"] == id)
            person = AssessmentSource("HUMAN", by)
            for name, value in answers.items():
                name = {"score": "score 0 to 1"}.get(name, name)
                if name.startswith("expected"):
                    mlflow.log_expectation(trace_id=item.trace, name=name, value=value, source=person)
                else:
                    mlflow.log_feedback(trace_id=item.trace, name=name, value=value, source=person, rationale=comment)
            set_review_queue_item_status(queue.queue_id, item_id=item.trace, status="complete", completed_by=by)

    def declines(self, id: str, by: str) -> None:
        from mlflow.genai.review_queues import set_review_queue_item_status

        with opened(self.place["tracking_uri"], self.place["experiment"]) as store:
            queue = store.queue(self.queue)
            item = next(item for item in traces.queue_items(store, queue) if item.record["id"] == id)
            set_review_queue_item_status(queue.queue_id, item_id=item.trace, status="declined", completed_by=by)

    def sees(self) -> dict[str, str]:
        """Status of each item."""
        with opened(self.place["tracking_uri"], self.place["experiment"]) as store:
            return {item.record["id"]: item.status for item in traces.queue_items(store, store.queue(self.queue))}


@pytest.fixture
def person(place) -> Person:
    return Person(place)


# ---- the real pages

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"


@pytest.fixture
def browser() -> Iterator:
    """Headless Chromium with a fresh profile. Its driver keeps an event loop running, so the fixture lasts only for one
    test.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright drives the browser: pip install -e .[test]"
    )
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, headless=True, args=FLAGS.split())
        yield started
        started.close()


class Reviewer:
    """A person at a review page. Args: name, password: a login, if the server requires one."""

    def __init__(self, browser, address: str, name: str | None = None, password: str | None = None) -> None:
        login = None if name is None else {"username": name, "password": password}
        context = browser.new_context(http_credentials=login, viewport={"width": 1500, "height": 900})
        context.set_default_timeout(60_000)  # two cores, shared with other tests
        self.page = context.new_page()
        self.page.goto(address)
        self.page.get_by_text("Exit review").wait_for()

    def sees(self, text: str) -> bool:
        element = self.page.get_by_text(text).first
        element.wait_for()
        element.scroll_into_view_if_needed()
        return element.is_visible()

    def submits(self, confirmation: str, score: str | None = None, critique: str | None = None, **answers: str) -> None:
        """Fill in the form and submit it. Args: confirmation: text to wait for; answers: by placeholder of the box."""
        page = self.page
        if score is not None:
            page.get_by_role("spinbutton").fill(score)
        if critique is not None:
            page.get_by_placeholder("Rationale (optional)").fill(critique)
        for placeholder, text in answers.items():
            page.get_by_placeholder(placeholder).fill(text)
        page.get_by_role("button", name=re.compile("Submit|Save changes")).click()
        page.get_by_text(confirmation).first.wait_for()

    def photographs(self, path: Path) -> None:
        """Save a screenshot if KEEP_SCREENSHOTS names a folder."""
        if folder := os.environ.get("KEEP_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / path)
