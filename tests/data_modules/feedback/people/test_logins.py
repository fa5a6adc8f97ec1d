"""MLflow server with logins: sources of reviews, permissions, and long candidates on the page."""

import urllib.error
import urllib.request

import pytest

from data_modules.feedback.people.ask import ask
from data_modules.feedback.people.items import RANKING
from data_modules.feedback.people.pull import pull
from data_modules.feedback.people.store import opened
from data_modules.judgements.files import read
from tests.data_modules.feedback.people.conftest import PAIR, Reviewer
from tests.mlflow_server import Server

PASSWORD = "a long password 1"
LONG = [
    {**PAIR, "id": f"long-{number}", "prompt": f"question {number} :\n" + "why " * 600 + "the end of the question ?"}
    | {"responses": ["1 * 2 * 3 <b>is</b> _six_", "# not\n- so", "because " * 600 + "the end of the answer ."]}
    for number in (1, 2)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("flask_wtf", reason="a server with logins needs mlflow[auth]: pip install -e .[test]")
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "any"}
    started = Server(tmp_path_factory.mktemp("server"), ["--app-name", "basic-auth"], secrets)
    started.start()
    yield started
    started.kill()


@pytest.fixture
def admin(server, monkeypatch):
    """This process logs in as administrator; Ana and Ben may write in the experiment; Eve has no permissions."""
    from mlflow.server.auth.client import AuthServiceClient

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    client = AuthServiceClient(server.uri)
    with opened(server.uri, "lightning_nlf", create=True) as store:
        for name in ("ana", "ben", "eve"):
            client.create_user(name, PASSWORD)
            if name != "eve":
                client.grant_user_permission(name, "experiment", store.id, "EDIT")
    return client


@pytest.mark.slow
def test_reviews_are_of_those_who_logged_in(server, admin, browser, lines, tmp_path, monkeypatch):
    page = ask(lines(*LONG), "q", server.uri, reviewers=["ana", "ben"]).page
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.uri}/ajax-api/3.0/mlflow/traces/search", timeout=10)

    ana, ben = (Reviewer(browser, page, name, PASSWORD) for name in ("ana", "ben"))
    for text in ("the end of the question ?", "1 * 2 * 3 <b>is</b>", "the end of the answer ."):
        assert ana.sees(text)
    ana.photographs("candidates.png")
    ana.submits("1 of 2 reviewed", **{RANKING.instruction: "B > A = C"})
    ben.page.reload()
    ben.page.get_by_text("1 of 2 reviewed").wait_for()
    ben.submits("Changes saved", **{RANKING.instruction: "C > A > B"})  # of the same item

    reviews = pull("q", tmp_path / "out.jsonl", server.uri)
    assert reviews.waiting == 1 and len({judgement.id for judgement in reviews.judgements}) == 2
    rankings = {judgement.source: judgement.ranking for judgement in read(tmp_path / "out.jsonl")}
    assert rankings == {"ana": "B > A = C", "ben": "C > A > B"}

    # Eve sees the experiment, but not the queue or its items
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "eve")
    with pytest.raises(ValueError, match="has no queue 'q'; its queues: none yet"):
        pull("q", tmp_path / "eve.jsonl", server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed")
    with pytest.raises(ValueError, match="tracking_uri: http://127.0.0.1:.* reports: .*(401|not authenticated)"):
        pull("q", tmp_path / "eve.jsonl", server.uri)
