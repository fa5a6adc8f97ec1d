"""Databases whose creating processes were killed, raced each other, or left an incomplete database."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from sqlalchemy import create_engine

from lightning_nlf.tracking import database
from lightning_nlf.tracking.database import create_database
from lightning_nlf.tracking.server import connect
from lightning_nlf.tracking.uris import sqlite_path, sqlite_uri

# Imports MLflow once, and creates each database in a separate process, whose id it prints.
MAKERS = """
import os, sys
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from lightning_nlf.tracking.database import create_database
for store in sys.argv[1:]:
    process = os.fork()
    if not process:
        create_database(Path(store))
        os._exit(0)
    print(process, flush=True)
    print(os.waitpid(process, 0)[1], flush=True)
"""
RUN = """
import sys
from pathlib import Path
from lightning_nlf.tracking.destination import Destination
from lightning_nlf.tracking.journal import Journal
from lightning_nlf.tracking.position import default_tracking_uri
from lightning_nlf.tracking.shipper import Shipper
run = Path(sys.argv[1])
journal = Journal(run)
journal.start(experiment="e", run_name=run.name)
shipper = Shipper(journal, Destination(run, default_tracking_uri(run)))
shipper.start()
journal.append("end", status="FINISHED")
print(shipper.close(15, 120))
"""


def runs(store):
    with closing(sqlite3.connect(store)) as connection:
        return connection.execute("SELECT name, status FROM runs ORDER BY name").fetchall()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete database without a run, created once."""
    path = tmp_path_factory.mktemp("whole") / "mlflow.db"
    create_database(path)
    return path


@pytest.fixture
def copied(whole, monkeypatch):
    """Create databases by copying the complete one, because MLflow's steps take seconds."""

    class Copy:
        def __init__(self, uri, artifacts):
            shutil.copy(whole, sqlite_path(uri))
            self.engine = create_engine("sqlite://")

    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", Copy)


@pytest.fixture
def half(whole, tmp_path):
    """The database that a process leaves if it was killed some steps before the last, long ago."""
    path = tmp_path / "mlflow.db"
    shutil.copy(whole, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        connection.execute("DELETE FROM experiments")
    os.utime(path, (1e9, 1e9))
    return path


def test_whole_store_is_left_alone(whole):
    before = whole.read_bytes()
    create_database(whole)
    assert whole.read_bytes() == before
    assert [path.name for path in whole.parent.iterdir()] == ["mlflow.db"]


@pytest.mark.slow
def test_maker_killed_at_any_moment_leaves_nothing_in_the_way(tmp_path, wait_for):
    """Killed when its folder, its journal, its first, and its last tables exist. Afterwards a run can be created."""

    def tables(store, number):
        for fresh in store.parent.glob(".mlflow.db-*/mlflow.db"):
            with closing(sqlite3.connect(f"{fresh.as_uri()}?mode=ro", uri=True)) as connection:
                return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > number
        return False

    moments = [
        lambda store: list(store.parent.glob(".mlflow.db-*")),
        lambda store: list(store.parent.glob(".mlflow.db-*/mlflow.db-journal")),
        lambda store: tables(store, 8),
        lambda store: tables(store, 60),
    ]
    stores = [tmp_path / str(number) / "mlflow.db" for number in range(len(moments))]
    command = [sys.executable, "-c", MAKERS, *map(str, stores)]
    makers = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for store, moment in zip(stores, moments, strict=True):
        process = int(makers.stdout.readline())
        wait_for(lambda store=store, moment=moment: moment(store) or store.exists(), 120)
        os.kill(process, signal.SIGKILL)
        assert int(makers.stdout.readline()) == signal.SIGKILL, "the database was complete too early"
        assert not store.exists() and len(os.listdir(store.parent)) == 1
        if store != stores[0]:
            (left,) = store.parent.iterdir()
            left.rename(stores[0].parent / left.name)
    assert makers.wait() == 0
    assert len(os.listdir(stores[0].parent)) == 4
    client = connect(sqlite_uri(stores[0]))
    client.create_run(client.create_experiment("e"), run_name="r")
    assert runs(stores[0]) == [("r", "RUNNING")]
    assert os.listdir(stores[0].parent) == ["mlflow.db"]


@pytest.mark.slow
def test_store_left_by_a_killed_tool_of_mlflow_is_made_anew(tmp_path, wait_for, caplog):
    store = tmp_path / "mlflow.db"
    program = "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", program, sqlite_uri(store)], stderr=subprocess.DEVNULL)
    wait_for(lambda: store.exists() and store.stat().st_size > 100_000, 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in tmp_path.iterdir():
        os.utime(path, (1e9, 1e9))
    connect(sqlite_uri(store)).create_experiment("e")
    assert (tmp_path / "mlflow.db.broken-1").is_file()
    assert [record.message for record in caplog.records if "incomplete" in record.message] == [
        f"{store} was incomplete and had no run: renamed it to mlflow.db.broken-1 and created a new one"
    ]


def test_half_made_store_goes_aside_with_its_journal(half, copied):
    half.with_name("mlflow.db-wal").write_bytes(b"")
    half.with_name("mlflow.db.broken-1").write_bytes(b"earlier")
    before = half.read_bytes()
    create_database(half)
    names = ["mlflow.db", "mlflow.db.broken-1", "mlflow.db.broken-2"]
    assert sorted(os.listdir(half.parent)) == names
    assert half.with_name("mlflow.db.broken-2").read_bytes() == before
    assert half.with_name("mlflow.db.broken-1").read_bytes() == b"earlier"
    with closing(sqlite3.connect(half)) as connection:
        assert connection.execute("SELECT name FROM experiments").fetchall() == [("Default",)]


@pytest.mark.parametrize("table", ["runs", "registered_models", "experiments"])
def test_store_that_holds_anything_is_never_moved(half, table):
    row = {
        "runs": "INSERT INTO runs (run_uuid) VALUES ('r')",
        "registered_models": "INSERT INTO registered_models (name) VALUES ('m')",
        "experiments": "INSERT INTO experiments (experiment_id, name) VALUES (1, 'e')",
    }[table]
    with closing(sqlite3.connect(half)) as connection, connection:
        connection.execute(row)
    create_database(half)
    assert os.listdir(half.parent) == ["mlflow.db"]
    with pytest.raises(RuntimeError, match=r"mlflow\.db holds runs, .* Make a copy of it, then run: mlflow db upgrade"):
        connect(sqlite_uri(half))


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_file_that_is_not_a_database_is_named_and_kept(tmp_path, content):
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(RuntimeError, match=r"cannot open \S+mlflow\.db as an MLflow database"):
        create_database(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == content and len(os.listdir(tmp_path)) == 1


def test_empty_file_and_a_journal_without_its_store_are_no_store(whole, tmp_path, copied):
    for name, content in (("mlflow.db", b""), ("mlflow.db-journal", b"stale")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (1e9, 1e9))
    create_database(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == whole.read_bytes()
    assert not (tmp_path / "mlflow.db-journal").exists()


def test_store_that_another_tool_is_making_is_waited_for(half, whole, monkeypatch):
    """The file changed just now. The other tool finishes during the wait."""
    os.utime(half)
    waits = []
    monkeypatch.setattr(database.time, "sleep", lambda seconds: waits.append(seconds) or shutil.copy(whole, half))
    create_database(half)
    assert len(waits) == 1 and os.listdir(half.parent) == ["mlflow.db"]


def test_lock_that_nobody_gives_back_is_announced_and_not_waited_for_for_ever(copied, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.3)
    monkeypatch.setattr(database, "_ANNOUNCED_SECONDS", 0.0)
    (tmp_path / ".mlflow.db-of-another").mkdir()
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        database.fcntl.flock(folder, database.fcntl.LOCK_EX)
        create_database(tmp_path / "mlflow.db")
    finally:
        os.close(folder)
    assert sorted(os.listdir(tmp_path)) == [
        ".mlflow.db-of-another",
        "mlflow.db",
    ]  # the other process may be working there
    assert "another process that creates" in caplog.text


@pytest.mark.parametrize("links", [True, False])
def test_store_that_another_process_finished_first_is_kept(copied, tmp_path, monkeypatch, links):
    """With a link the other's file stays. On a file system without links the file is renamed."""
    store = tmp_path / "mlflow.db"

    def link(fresh, path):
        if not links:
            raise PermissionError
        path.write_bytes(b"of the other")
        raise FileExistsError

    monkeypatch.setattr(database.os, "link", link)
    create_database(store)
    assert (store.read_bytes() == b"of the other") == links
    assert os.listdir(tmp_path) == ["mlflow.db"]


@pytest.mark.slow
def test_first_runs_that_begin_together_are_all_in(tmp_path):
    """Each run ends at once, long before the database is complete."""
    names = [f"run{number}" for number in range(4)]
    commands = [[sys.executable, "-c", RUN, str(tmp_path / name)] for name in names]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate(timeout=400)[0] for process in processes] == ["0\n"] * 4
    assert runs(tmp_path / "mlflow.db") == [(name, "FINISHED") for name in names]
    assert sorted(os.listdir(tmp_path)) == ["mlflow.db", *names]
