import logging
import time

import pytest
from mlflow import MlflowClient

from lightning_nlf.tracking import shipper as shipper_module
from lightning_nlf.tracking.destination import Destination
from lightning_nlf.tracking.journal import JOURNAL, Journal, read_records
from lightning_nlf.tracking.position import read_position
from lightning_nlf.tracking.shipper import Shipper

DEAD = "http://127.0.0.1:9"


def opened(folder, uri):
    journal = Journal(folder)
    journal.start(experiment="e", run_name="r")
    shipper = Shipper(journal, Destination(folder, uri))
    shipper.start()
    return journal, shipper


def shipped(folder, uri):
    return Destination(folder, uri).left() == 0


@pytest.mark.slow
def test_every_record_arrives_over_a_kill_and_a_restart_and_no_call_waits(tmp_path, server, wait_for, caplog):
    """100 steps while the server runs, 100 after SIGKILL, and 100 after its restart. Each step arrives exactly once."""
    journal, shipper = opened(tmp_path, server.uri)
    durations = []

    def steps(numbers):
        for step in numbers:
            began = time.perf_counter()
            journal.metrics({"train/loss": step / 8, "train/entropy": 1.0}, step)
            durations.append(time.perf_counter() - began)
            time.sleep(0.002)

    journal.metrics({"before": 1.0}, 0)
    wait_for(lambda: shipped(tmp_path, server.uri), 60)  # connected, so MLflow is imported
    steps(range(100))
    server.kill()
    steps(range(100, 200))
    wait_for(lambda: caplog.records, 30)
    server.start()
    steps(range(200, 300))
    wait_for(lambda: shipped(tmp_path, server.uri), 60)
    assert shipper.close(30) == 0
    # Allow three of 300 slow calls on a busy machine. A call that waited for the server would take seconds.
    assert sorted(durations)[-4] < 0.05 and max(durations) < 2
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("lightning_nlf")]
    assert len(warnings) == 1 and server.uri in warnings[0] and "Training continues" in warnings[0]
    client = MlflowClient(server.uri)
    run_id = read_position(tmp_path, server.uri).run_id
    for key, value in (("train/loss", lambda step: step / 8), ("train/entropy", lambda step: 1.0)):
        history = sorted(client.get_metric_history(run_id, key), key=lambda row: row.step)
        assert [(row.step, row.value) for row in history] == [(step, value(step)) for step in range(300)]


@pytest.mark.slow
def test_dead_server_neither_blocks_nor_fails_and_the_rest_is_counted(tmp_path, caplog, wait_for):
    journal, shipper = opened(tmp_path, DEAD)
    for step in range(10):
        journal.metrics({"loss": 1.0}, step)
    wait_for(lambda: caplog.records, 30)
    began = time.monotonic()
    assert shipper.close(20) == 11  # the start and ten steps
    assert time.monotonic() - began < 10
    warnings = [record for record in caplog.records if not record.getMessage().startswith("waiting")]  # a busy machine
    assert [record.levelno for record in warnings] == [logging.WARNING]
    assert "Connection refused" in caplog.text


def test_closing_waits_no_longer_than_it_is_told(tmp_path, monkeypatch):
    """If a batch takes a minute, close(0.2) returns in time with two records left."""
    monkeypatch.setattr(Destination, "ship_next", lambda self: time.sleep(60))
    journal, shipper = opened(tmp_path, DEAD)
    journal.metrics({"loss": 1.0}, 0)
    began = time.monotonic()
    assert shipper.close(0.2) == 2
    assert time.monotonic() - began < 2


def test_machine_is_sampled_at_the_seconds_since_the_start(tmp_path, monkeypatch, wait_for):
    monkeypatch.setattr(shipper_module, "SAMPLE_INTERVAL", 0.05)
    monkeypatch.setattr(shipper_module, "INTERVAL", 0.05)
    monkeypatch.setattr(Destination, "ship_next", lambda self: 0)
    _, shipper = opened(tmp_path, DEAD)

    def samples():
        return [record for record, _ in read_records(tmp_path / JOURNAL) if record["kind"] == "metrics"]

    wait_for(lambda: len(samples()) >= 2, 10)
    shipper.close(5)
    assert samples()[0]["values"].keys() == {"system/cpu_percent", "system/memory_mb"}
    assert samples()[0]["values"]["system/memory_mb"] > 10  # no Python with pytest is smaller
    assert all(0 <= sample["step"] <= 10 for sample in samples())
