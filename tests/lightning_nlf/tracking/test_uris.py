import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from lightning_nlf.callbacks.places import _look_at
from lightning_nlf.tracking.__main__ import main
from lightning_nlf.tracking.destination import Destination
from lightning_nlf.tracking.journal import Journal
from lightning_nlf.tracking.position import default_tracking_uri
from lightning_nlf.tracking.uris import artifact_location, sqlite_path, sqlite_uri, without_credentials

ODD = [
    "a b",
    "a%20b",
    "a%2Fb",
    "%",
    "a?b",
    "a?b..c",
    "a#b",
    "\u00e9\u6f22",
    "a&b=c+d",
    "a@b:c",
    "a\nb",
    "[x];'\"",
    "%2525",
]


def test_credentials_are_taken_out():
    assert without_credentials("postgresql://me:pass@host:1/db") == "postgresql://host:1/db"
    assert without_credentials("sqlite:////data/a@b.db") == "sqlite:////data/a@b.db"


def test_artifacts_are_next_to_a_database_file():
    assert artifact_location("sqlite:////data/runs/mlflow.db") == "/data/runs/mlartifacts"
    assert artifact_location("http://server") is None


@pytest.mark.parametrize("name", ODD)
def test_sqlalchemy_opens_the_file_that_was_meant(name, tmp_path):
    store = tmp_path / name / "mlflow.db"
    store.parent.mkdir()
    assert make_url(sqlite_uri(store)).database == str(store)
    assert sqlite_path(sqlite_uri(store)) == store
    with create_engine(sqlite_uri(store)).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    assert [path.name for path in tmp_path.rglob("*")] == [name, "mlflow.db"]


def test_ordinary_paths_stand_in_a_uri_as_they_are():
    assert sqlite_uri(Path("/data/my runs/\u00e9/mlflow.db")) == "sqlite:////data/my runs/\u00e9/mlflow.db"
    assert artifact_location("sqlite:////data/my runs/mlflow.db") == "/data/my runs/mlartifacts"


@pytest.mark.parametrize("uri", ["http://server/a.db", "sqlite://", "sqlite:///:memory:", "sqlite:///?timeout=3", "x"])
def test_no_file_is_made_of_what_is_no_file(uri):
    assert sqlite_path(uri) is None and artifact_location(uri) is None


def test_uri_of_a_user_is_read_as_sqlalchemy_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sqlite_path("sqlite:///out/a%20b.db?timeout=3") == tmp_path / "out" / "a b.db"
    assert sqlite_path("sqlite+pysqlite:////data/mlflow.db") == Path("/data/mlflow.db")


@pytest.mark.slow
def test_run_below_an_odd_path_is_in_its_own_store_with_its_files(tmp_path, capsys, monkeypatch):
    name = "a%2Fb?c #\u00e9"
    outputs = tmp_path / name
    journal = Journal(outputs / "run")
    journal.start(experiment="e", run_name="r")
    journal.metrics({"loss": 0.5}, 1)
    (outputs / "run" / "note.txt").write_text("hello")
    journal.append("artifact", path="note.txt")
    journal.append("end", status="FINISHED")
    uri = default_tracking_uri(outputs / "run")
    assert main(["sync", str(outputs / "run")]) == 0
    with closing(sqlite3.connect(outputs / "mlflow.db")) as connection:
        assert connection.execute("SELECT name, status FROM runs").fetchall() == [("r", "FINISHED")]
    client, position = Destination(outputs / "run", uri).open()
    assert Path(client.download_artifacts(position.run_id, "note.txt")).read_text() == "hello"
    assert [path.read_text() for path in (outputs / "mlartifacts").rglob("note.txt")] == ["hello"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    capsys.readouterr()
    assert main(["ui", str(outputs), "--print"]) == 0
    command, page = capsys.readouterr().out.rstrip().split("\n")
    assert uri in command and page == "e: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    monkeypatch.chdir(tmp_path)
    assert _look_at(uri) == f"python -m lightning_nlf.tracking ui '{name}'"


@pytest.mark.parametrize(
    ("run_dir", "store"),
    [
        ("outputs/injection-seed0", "outputs"),
        ("outputs/reviews/dpo-seed0", "outputs"),
        ("outputs/old/outputs/reviews/dpo-seed0", "outputs/old/outputs"),
        ("elsewhere/mine/run", "elsewhere/mine"),
    ],
)
def test_all_runs_below_outputs_share_a_store(tmp_path, run_dir, store):
    """A run that is not below `outputs` has its store in the parent folder."""
    assert default_tracking_uri(tmp_path / run_dir).endswith(f"{tmp_path / store}/mlflow.db")
