import hashlib
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import Logger
from mlflow import MlflowClient

from lightning_nlf.tracking import logger as logger_module
from lightning_nlf.tracking.destination import Destination
from lightning_nlf.tracking.journal import JOURNAL, read_records
from lightning_nlf.tracking.logger import MLflowJournalLogger
from lightning_nlf.tracking.position import read_position
from lightning_nlf.tracking.replay import run_tracking_uri

COMMAND = "python -m lightning_nlf.tracking sync"
DEAD = "http://127.0.0.1:9"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(logger_module.__file__).parents[2])}


def records(folder):
    return [record for record, _ in read_records(folder / JOURNAL)]


def run_of(logger):
    client = MlflowClient(logger.tracking_uri)
    return client, client.get_run(read_position(Path(logger.save_dir), logger.tracking_uri).run_id)


@pytest.fixture
def unshipped(monkeypatch):
    """Write only the journal, without the thread and MLflow."""
    monkeypatch.setattr(logger_module.Shipper, "start", lambda self: None)
    monkeypatch.setattr(logger_module.Shipper, "close", lambda self, *seconds: 0)


class Raise(Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, *arguments):
        raise self.error


def fit(logger, *callbacks, epochs=1, **arguments):
    trainer = Trainer(
        logger=logger,
        callbacks=list(callbacks),
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=1,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **arguments,
    )
    trainer.fit(Logging())
    return trainer


class Logging(BoringModel):
    def training_step(self, batch, batch_idx):
        out = super().training_step(batch, batch_idx)
        self.log("train/loss", out["loss"])
        return out


def test_log_metrics_costs_less_than_50_microseconds(tmp_path, unshipped):
    """Ten terms per step, 20 rounds of 200 steps. The best round shows the cost without the load of other processes."""
    logger = MLflowJournalLogger(str(tmp_path), tracking_uri=DEAD)
    values = {f"train/term_{index}": 0.1234567 * index for index in range(10)}
    logger.log_metrics(values, 0)
    rounds = []
    for _ in range(20):
        began = time.perf_counter()
        for step in range(200):
            logger.log_metrics(values, step)
        rounds.append((time.perf_counter() - began) / 200)
    logger.finalize("success")
    assert min(rounds) < 50e-6
    assert len(records(tmp_path)) == 3 + 20 * 200  # start, the first, end


def test_given_tags_are_set_at_each_start(tmp_path, unshipped):
    for _ in range(2):
        logger = MLflowJournalLogger(str(tmp_path), tags={"mlflow.parentRunId": "7", "arm": "joint"})
        logger.log_metrics({"a": 1.0}, 0)
        logger.finalize("success")
    tags = [record["values"] for record in records(tmp_path) if record["kind"] == "tags"]
    assert tags == [{"mlflow.parentRunId": "7", "arm": "joint"}] * 2


def test_run_folder_is_all_the_folders_there_are(tmp_path):
    logger = MLflowJournalLogger(str(tmp_path / "outputs" / "run"))
    assert (logger.name, logger.version) == ("", "")
    assert logger.save_dir == logger.log_dir == logger.root_dir == str(tmp_path / "outputs" / "run")
    assert logger.tracking_uri == f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}"
    assert not (tmp_path / "outputs").exists()  # nothing is opened before the first record


def test_tracking_uri_is_the_argument_else_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from.environment")
    assert MLflowJournalLogger(str(tmp_path)).tracking_uri == "http://from.environment"
    assert MLflowJournalLogger(str(tmp_path), tracking_uri="http://given").tracking_uri == "http://given"


def test_credentials_are_not_written_down(tmp_path):
    logger = MLflowJournalLogger(str(tmp_path), tracking_uri="http://me:secret@127.0.0.1:9")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert records(tmp_path)[0]["tracking_uri"] == "http://127.0.0.1:9"
    assert not any("secret" in file.read_text() for file in tmp_path.iterdir())


def test_made_from_a_yaml(tmp_path):
    parser = ArgumentParser()
    parser.add_argument("--logger", type=Logger)
    config = f"""
logger:
  class_path: lightning_nlf.tracking.logger.MLflowJournalLogger
  init_args: {{save_dir: {tmp_path}, experiment: pendulum, run_name: null}}
"""
    logger = parser.instantiate_classes(parser.parse_string(config)).logger
    assert isinstance(logger, MLflowJournalLogger)
    assert logger.log_dir == str(tmp_path)


def test_records_of_every_kind(tmp_path, unshipped):
    logger = MLflowJournalLogger(str(tmp_path), experiment="e", tracking_uri=DEAD)
    (tmp_path / "curve.png").write_bytes(b"x")
    logger.log_hyperparams(
        {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "callbacks": [{"name": "a"}], "text": "x" * 7000}
    )
    logger.log_metrics({"loss": torch.tensor(0.5), "steps": 3}, 4)
    logger.log_metrics({"late": 1.0})
    logger.set_tags({"git": "abc", "long": "y" * 9000})
    logger.log_artifact(tmp_path / "curve.png")
    logger.log_artifact("curve.png")
    with pytest.raises(ValueError, match="inside the run folder"):
        logger.log_artifact("/etc/hostname")
    logger.finalize("success")
    start, params, first, late, tags, *artifacts, end = records(tmp_path)
    assert (start["experiment"], start["run_name"]) == ("e", tmp_path.name)
    assert params["values"].pop("text") == "x" * 5999 + "…"
    assert params["values"] == {"optimizer/lr": "0.1", "optimizer/betas": "[0.9, 0.99]", "callbacks/0/name": "a"}
    assert (first["values"], first["step"]) == ({"loss": 0.5, "steps": 3.0}, 4)
    assert late["step"] == 4  # without a step: the last one seen
    assert tags["values"]["git"] == "abc" and len(tags["values"]["long"]) == 8000
    assert [record["path"] for record in artifacts] == ["curve.png", "curve.png"]
    assert end["status"] == "FINISHED"


def test_a_large_file_is_named_by_path_and_digest_and_not_copied(tmp_path, unshipped):
    logger = MLflowJournalLogger(str(tmp_path / "run"), largest_mb=0.001)
    for name, size in (("small", 1000), ("large", 1001)):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes(b"a" * size)
        logger.log_artifact(name)
    copied = [record["path"] for record in records(tmp_path / "run") if record["kind"] == "artifact"]
    tags = [record["values"] for record in records(tmp_path / "run") if record["kind"] == "tags"]
    digest = hashlib.sha256(b"a" * 1001).hexdigest()
    assert copied == ["small"]
    assert tags == [{"not_copied/large": f"{(tmp_path / 'run/large').resolve()} (0.001001 MB, SHA-256 {digest})"}]


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(logger_module.rank_zero_only, "rank", 1)
    logger = MLflowJournalLogger(str(tmp_path / "run"), tracking_uri=DEAD)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_hyperparams({"lr": 1})
    logger.experiment.append("tags", values={})
    logger.finalize("success")
    assert not (tmp_path / "run").exists()


def test_copy_for_a_spawned_process_has_the_settings_only(tmp_path, unshipped):
    logger = MLflowJournalLogger(str(tmp_path), tracking_uri=DEAD)
    logger.log_metrics({"loss": 1.0}, 3)
    copy = pickle.loads(pickle.dumps(logger))
    assert copy.save_dir == logger.save_dir and copy.tracking_uri == DEAD
    copy.log_metrics({"loss": 2.0}, 4)
    for instance in (logger, copy):
        instance.finalize("success")
    assert [record["kind"] for record in records(tmp_path)] == ["start", "metrics"] * 2 + ["end"] * 2


@pytest.mark.slow
def test_fit_then_resume_then_test_is_one_run(tmp_path):
    first = MLflowJournalLogger(str(tmp_path / "run"))
    fit(first)
    client, run = run_of(first)
    assert run.info.status == "FINISHED"
    second = MLflowJournalLogger(str(tmp_path / "run"))
    trainer = fit(second, epochs=2)
    trainer.test(Logging(), verbose=False)
    assert run_of(second)[1].info.run_id == run.info.run_id
    assert run_of(second)[1].info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert sorted(row.step for row in client.get_metric_history(run.info.run_id, "train/loss")) == [0, 0, 1, 1, 2, 3]
    assert [record["kind"] for record in records(tmp_path / "run")].count("start") == 2  # the test has nothing to log


@pytest.mark.slow
def test_resumed_run_is_running_meanwhile(tmp_path, wait_for):
    logger = MLflowJournalLogger(str(tmp_path / "run"))
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    resumed = MLflowJournalLogger(str(tmp_path / "run"))
    resumed.log_metrics({"loss": 0.5}, 1)
    wait_for(lambda: run_of(resumed)[1].info.status == "RUNNING", 30)
    resumed.finalize("failed")
    client, run = run_of(resumed)
    assert run.info.status == "FAILED"
    assert [row.step for row in client.get_metric_history(run.info.run_id, "loss")] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_crash_is_failed_and_an_interrupt_killed(tmp_path, error, status, wait_for):
    logger = MLflowJournalLogger(str(tmp_path / "run"))
    with pytest.raises((ValueError, SystemExit)):
        fit(logger, Raise(error))
    # An interrupt does not wait for MLflow to be imported; the thread goes on.
    wait_for(lambda: Destination(tmp_path / "run", logger.tracking_uri).left() == 0, 60)
    assert run_of(logger)[1].info.status == status


@pytest.mark.slow
def test_fit_without_a_server_finishes_and_names_the_command(tmp_path, caplog):
    logger = MLflowJournalLogger(str(tmp_path / "run"), tracking_uri=DEAD)
    assert fit(logger).state.finished
    assert f"python -m lightning_nlf.tracking sync {tmp_path / 'run'}" in caplog.records[-1].getMessage()
    assert records(tmp_path / "run")[-1]["status"] == "FINISHED"


@pytest.mark.slow
def test_slow_server_costs_no_call_and_an_announced_wait(tmp_path, caplog):
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        logger = MLflowJournalLogger(str(tmp_path), tracking_uri=uri)
        durations = []
        for step in range(100):
            began = time.perf_counter()
            logger.log_metrics({"loss": 1.0}, step)
            durations.append(time.perf_counter() - began)
            time.sleep(0.005)
        began = time.monotonic()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            logger.finalize("failed")
        assert 2 < time.monotonic() - began < 20
    assert sorted(durations)[50] < 0.05
    kinds = [record["kind"] for record in records(tmp_path) if "system/memory_mb" not in record.get("values", {})]
    assert kinds == ["start", *["metrics"] * 100, "end"]
    messages = [record.getMessage() for record in caplog.records]
    assert f"waiting up to 3 s for MLflow at {uri} …" in messages
    assert any(text.endswith(f"To send them later: {COMMAND} {tmp_path} --tracking_uri {uri}") for text in messages)


def test_end_waits_15_seconds_and_3_when_interrupted(tmp_path, unshipped, monkeypatch):
    waited = []
    monkeypatch.setattr(logger_module.Shipper, "close", lambda self, *seconds: waited.append(seconds) or 0)
    logger = MLflowJournalLogger(str(tmp_path), tracking_uri=DEAD)
    for error in (ValueError, KeyboardInterrupt):
        logger.log_metrics({"loss": 1.0}, 0)
        try:
            raise error
        except error:
            logger.finalize("failed")
    assert waited == [(15, 120), (3,)]  # 120 s while the database is created


def test_store_of_the_variable_is_remembered_without_it(tmp_path, unshipped, monkeypatch, caplog):
    monkeypatch.setattr(logger_module.Shipper, "close", lambda self, *seconds: 7)
    for name, uri in (("server", "http://me:secret@127.0.0.1:9"), ("default", "")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        logger = MLflowJournalLogger(str(tmp_path / name))
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert run_tracking_uri(tmp_path / "server") == "http://127.0.0.1:9"
    assert run_tracking_uri(tmp_path / "default") == f"sqlite:///{tmp_path}/mlflow.db"
    server, default = [r.getMessage() for r in caplog.records if r.name.endswith("tracking.logger")]
    assert server.endswith(f"sync {tmp_path}/server --tracking_uri http://127.0.0.1:9")
    assert default.endswith(f"sync {tmp_path}/default")


def test_source_is_the_package_that_was_run(tmp_path, unshipped, monkeypatch):
    for words, name in ((["/x/lightning_nlf/__main__.py", "fit"], "lightning_nlf"), (["/x/train.py"], "train.py")):
        monkeypatch.setattr(sys, "argv", words)
        logger = MLflowJournalLogger(str(tmp_path / name), tracking_uri=DEAD)
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
        assert records(tmp_path / name)[0]["source.name"] == name


def test_run_that_failed_before_its_first_step_is_failed(tmp_path, unshipped):
    logger = MLflowJournalLogger(str(tmp_path), tracking_uri=DEAD)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("failed")
    assert [record["kind"] for record in records(tmp_path)] == ["start", "params", "end"]
    # The next process in the folder is refused before training, and the one after it trains.
    refused = MLflowJournalLogger(str(tmp_path), tracking_uri=DEAD)
    refused.log_hyperparams({"lr": 0.2})
    refused.finalize("failed")
    assert len(records(tmp_path)) == 3
    resumed = MLflowJournalLogger(str(tmp_path), tracking_uri=DEAD)
    resumed.log_hyperparams({"lr": 0.3})
    resumed.log_metrics({"loss": 1.0}, 0)
    resumed.finalize("success")
    assert [record["kind"] for record in records(tmp_path)[3:]] == ["start", "params", "metrics", "end"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "status"),
    [("raise ValueError", "FAILED"), ("logger.finalize('success'); logger.set_tags({1: 2})", "FINISHED")],
)
def test_process_that_ends_nothing_leaves_no_running_run(tmp_path, ending, status):
    """An error outside the Trainer. The working folder of the process stays empty."""
    program = f"""
from lightning_nlf.tracking.logger import MLflowJournalLogger
logger = MLflowJournalLogger({str(tmp_path / "outputs" / "run")!r})
logger.log_metrics({{"loss": 1.0}}, 0)
{ending}
"""
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, check=False, cwd=tmp_path / "here", env=ENVIRONMENT, capture_output=True)
    assert process.returncode == (status == "FAILED")
    assert not list((tmp_path / "here").iterdir())
    assert run_of(MLflowJournalLogger(str(tmp_path / "outputs" / "run")))[1].info.status == status
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["mlflow.db", "run"]


def test_spawned_rank_has_the_last_word(tmp_path, unshipped):
    """The launching process opened the journal first. Its later end must not mark the run as FAILED."""
    logger = MLflowJournalLogger(str(tmp_path), tracking_uri=DEAD)
    logger.log_hyperparams({"lr": 0.1})
    program = """
import sys
from lightning_nlf.tracking.journal import Journal
journal = Journal(sys.argv[1])
journal.start()
journal.append("end", status="FINISHED")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=ENVIRONMENT)
    logger._at_exit()
    assert [record["kind"] for record in records(tmp_path)] == ["start", "params", "start", "end"]
    assert records(tmp_path)[-1]["status"] == "FINISHED"


@pytest.mark.parametrize("spare", [0, 1])
def test_a_process_without_descriptors_ends_without_a_traceback(tmp_path, spare):
    """The journal is open, but no other file can be opened, not even to count what has arrived."""
    program = f"""
import os, resource
from lightning_nlf.tracking import logger as module
module.FLUSH_SECONDS = 0.1
module.Shipper.start = lambda self: None
logger = module.MLflowJournalLogger({str(tmp_path / "run")!r}, tracking_uri={DEAD!r})
logger.log_metrics({{"loss": 1.0}}, 0)
free = os.dup(0)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free + {spare}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""
    process = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert "Traceback" not in process.stderr and "Exception ignored" not in process.stderr, process.stderr
    assert "not reached MLflow" in process.stderr or "could not write the end of the run" in process.stderr
