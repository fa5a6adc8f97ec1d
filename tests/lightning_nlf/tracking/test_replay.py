import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lightning_nlf.tracking.journal import JOURNAL, Journal, count_records, last_lifecycle
from lightning_nlf.tracking.replay import run_tracking_uri, sync

WRITER = """
import sys, time
from lightning_nlf.tracking.journal import Journal
journal = Journal(sys.argv[1])
journal.start(experiment="e", run_name="r")
for step in range(10):
    journal.metrics({"loss": step / 2}, step)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.mark.slow
def test_run_made_offline_arrives_and_twice_is_once(tmp_path, server):
    """The logger's server does not exist. The records are later sent to another one over HTTP, with an artifact."""
    from lightning_nlf.tracking.logger import MLflowJournalLogger

    logger = MLflowJournalLogger(str(tmp_path / "run"), run_name="offline", tracking_uri="http://127.0.0.1:9")
    logger.log_hyperparams({"lr": 0.1})
    for step in range(50):
        logger.log_metrics({"train/loss": step / 4}, step)
    (tmp_path / "run" / "note.txt").write_text("hello")
    logger.log_artifact("note.txt")
    logger.finalize("success")
    position, count = sync(tmp_path / "run", server.uri)
    assert count == 55  # start, params, 50 steps, an artifact's record and its file, end
    assert sync(tmp_path / "run", server.uri) == (position, 0)
    (tmp_path / "run" / "mlflow.json").unlink()
    assert sync(tmp_path / "run", server.uri)[0] == position
    client = MlflowClient(server.uri)
    run = client.get_run(position.run_id)
    assert (run.info.run_name, run.info.status, run.data.params) == ("offline", "FINISHED", {"lr": "0.1"})
    rows = client.get_metric_history(position.run_id, "train/loss")
    assert sorted((row.step, row.value) for row in rows) == [(step, step / 4) for step in range(50)]
    assert Path(client.download_artifacts(position.run_id, "note.txt", str(tmp_path))).read_text() == "hello"


def test_dead_process_is_failed_and_a_living_one_is_not(tmp_path, uri, wait_for):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    try:
        wait_for(lambda: count_records(tmp_path / JOURNAL) == 11, 30)
        position, _ = sync(tmp_path, uri)
        client = MlflowClient(uri)
        assert client.get_run(position.run_id).info.status == "RUNNING"
        assert last_lifecycle(tmp_path / JOURNAL)["kind"] == "start"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(b'{"kind":"metr')
    sync(tmp_path, uri)
    run = client.get_run(position.run_id)
    last = max(row.timestamp for row in client.get_metric_history(position.run_id, "loss"))
    assert (run.info.status, run.info.end_time) == ("FAILED", last)
    assert sync(tmp_path, uri)[1] == 0


def test_folder_without_a_journal_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no journal"):
        sync(tmp_path)
    assert not list(tmp_path.iterdir())


def test_replay_goes_where_the_run_was_sent(tmp_path):
    journal = Journal(tmp_path / "run")
    journal.start(experiment="e", run_name="r", tracking_uri="http://given")
    assert run_tracking_uri(tmp_path / "run") == "http://given"
    assert run_tracking_uri(tmp_path / "run", "http://other") == "http://other"
    assert run_tracking_uri(tmp_path / "second") == f"sqlite:///{tmp_path}/mlflow.db"
