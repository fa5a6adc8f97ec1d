import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from lightning_nlf.tracking.destination import Destination, RunDeletedError
from lightning_nlf.tracking.journal import Journal
from lightning_nlf.tracking.names import clean_name, clean_names
from lightning_nlf.tracking.position import STATE, read_position
from lightning_nlf.tracking.server import experiment_id, reason


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "run")
    journal.start(experiment="e", run_name="a run")
    return journal


def ship(journal, uri):
    destination = Destination(journal.path.parent, uri)
    while destination.ship_next():
        pass
    client, position = destination.open()
    return client, position.run_id


def test_metrics_sent_twice_are_there_once(journal, uri):
    """Send more than one batch (2,500 rows, some NaN), and then everything again from the first byte."""
    for step in range(1250):
        journal.metrics({"a": step / 4, "b": float("nan")}, step)
    client, run_id = ship(journal, uri)
    (journal.path.parent / STATE).unlink()
    assert ship(journal, uri)[1] == run_id  # found by the identity of the journal
    for key in ("a", "b"):
        history = client.get_metric_history(run_id, key)
        assert sorted(row.step for row in history) == list(range(1250))
    assert sum(row.value for row in client.get_metric_history(run_id, "a")) == 1250 * 1249 / 2 / 4


def test_run_has_name_times_status_and_artifacts_next_to_the_database(journal, uri, tmp_path):
    journal.append("end", status="KILLED", time=4102444800000)
    client, run_id = ship(journal, uri)
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status, run.info.end_time) == ("a run", "KILLED", 4102444800000)
    assert run.info.start_time <= 4102444800000
    assert run.info.artifact_uri.startswith(uri.removeprefix("sqlite:///").removesuffix("mlflow.db") + "mlartifacts/")


def test_params_are_kept_and_a_changed_one_becomes_a_tag(journal, uri):
    journal.append("params", values={"lr": "0.1", "epochs": "5"})
    ship(journal, uri)
    journal.append("params", values={"lr": "0.1", "epochs": "9", "new": "x"})
    client, run_id = ship(journal, uri)
    data = client.get_run(run_id).data
    assert data.params == {"lr": "0.1", "epochs": "5", "new": "x"}
    assert data.tags["resumed/epochs"] == "9"
    assert "resumed/lr" not in data.tags


def test_artifacts_arrive_in_their_folder_and_newest(journal, uri, caplog):
    folder = journal.path.parent
    (folder / "plots").mkdir()
    for text in ("old", "new"):
        (folder / "plots" / "curve.txt").write_text(text)
        journal.append("artifact", path="plots/curve.txt")
        client, run_id = ship(journal, uri)
    journal.append("artifact", path="gone.png")
    ship(journal, uri)
    assert [file.path for file in client.list_artifacts(run_id, "plots")] == ["plots/curve.txt"]
    assert Path(client.download_artifacts(run_id, "plots/curve.txt")).read_text() == "new"
    assert "gone.png: it cannot be read" in caplog.text and len(caplog.records) == 1


def test_artifact_that_fails_holds_up_no_metric_and_is_sent_later(journal, uri, monkeypatch):
    folder = journal.path.parent
    (folder / "curve.txt").write_text("x")
    journal.append("artifact", path="curve.txt")
    destination = Destination(folder, uri)

    def refuse(*arguments):
        raise OSError("no space on the server")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refuse)
        destination.ship_next()
        with pytest.raises(OSError, match="no space"):
            destination.ship_next()
        journal.metrics({"loss": 1.0}, 1)
        assert destination.ship_next() == 1
        assert destination.left() == 1
        client, position = destination.open()
        assert client.get_run(position.run_id).data.metrics == {"loss": 1.0}
    client, run_id = ship(journal, uri)
    assert [file.path for file in client.list_artifacts(run_id)] == ["curve.txt"]
    assert destination.left() == 0


def test_record_that_mlflow_refuses_is_skipped_and_the_others_arrive(journal, uri, caplog, monkeypatch):
    for key in ("good", "bad", "better"):
        journal.append("tags", values={key: "1"})
    log_batch = MlflowClient.log_batch

    def refuse(client, run_id, metrics, params, tags):
        if any(tag.key == "bad" for tag in tags):
            raise MlflowException("no", INVALID_PARAMETER_VALUE)
        log_batch(client, run_id, metrics, params, tags)

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    client, run_id = ship(journal, uri)
    assert {"good", "better"} == {"good", "bad", "better"} & client.get_run(run_id).data.tags.keys()
    assert "refused a tags record" in caplog.text


def test_deleted_run_ends_the_shipping_and_a_replay_makes_a_new_one(journal, uri):
    journal.metrics({"loss": 1.0}, 1)
    destination = Destination(journal.path.parent, uri)
    destination.ship_next()
    client, position = destination.open()
    old = position.run_id
    client.delete_run(old)
    journal.metrics({"loss": 2.0}, 2)
    with pytest.raises(RunDeletedError, match=old):
        destination.ship_next()
    _, new = ship(journal, uri)
    assert new != old
    assert [row.step for row in client.get_metric_history(new, "loss")] == [1, 2]


def test_two_stores_are_kept_apart(journal, uri, tmp_path):
    second = f"sqlite:///{tmp_path / 'second.db'}"
    journal.metrics({"loss": 1.0}, 1)
    first_run, second_run = ship(journal, uri)[1], ship(journal, second)[1]
    assert read_position(journal.path.parent, uri).run_id == first_run
    assert read_position(journal.path.parent, second).run_id == second_run


@pytest.mark.slow
def test_processes_that_create_the_store_at_once_do_not_break_it(tmp_path):
    program = """
import sys
from lightning_nlf.tracking.destination import Destination
from lightning_nlf.tracking.journal import Journal
journal = Journal(sys.argv[1])
journal.start(experiment="e", run_name="r")
print(Destination(sys.argv[1], sys.argv[2]).ship_next())
"""
    store = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    commands = [[sys.executable, "-c", program, str(tmp_path / name), store] for name in ("one", "two")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["1\n", "1\n"]
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("e")
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]


def test_deleted_experiment_is_told_by_name(uri, tmp_path):
    client = MlflowClient(uri)
    client.delete_experiment(experiment_id(client, "gone", uri))
    with pytest.raises(RuntimeError, match="experiment 'gone' was deleted"):
        experiment_id(client, "gone", uri)


@pytest.mark.parametrize(
    ("key", "name"),
    [("train/loss", "train/loss"), ("acc@5", "acc_5"), ("/a//b/", "a/b"), ("../x", "x"), ("", "_"), ("é: 1", "é: 1")],
)
def test_names_are_made_legal(key, name):
    assert clean_name(key) == name


def test_reason_is_one_short_line():
    assert reason(OSError("HTTPConnectionPool(...): [Errno 111] Connection refused'))")) == "Connection refused"
    assert reason(ValueError("first\nsecond")) == "ValueError: first"
    assert reason(ValueError()) == "ValueError: "


def test_keys_that_differ_in_what_mlflow_does_not_take_stay_apart(journal, uri):
    journal.append("params", values={"dup[1]": "a", "dup(1)": "b", "dup_1_": "c", "acc@5": "d"})
    journal.metrics({"f[1]": 1.0, "f(1)": 2.0}, 0)
    client, run_id = ship(journal, uri)
    data = client.get_run(run_id).data
    assert sorted(data.params.values()) == ["a", "b", "c", "d"]
    assert data.params["dup_1_"] == "c" and data.params["acc_5"] == "d"
    assert sorted(data.metrics.values()) == [1.0, 2.0]
    journal.append("params", values={"dup[1]": "a", "dup(1)": "b", "dup_1_": "c", "acc@5": "d"})  # a resume
    assert client.get_run(ship(journal, uri)[1]).data.params == data.params


def test_names_depend_on_the_key_and_not_on_the_order():
    names = clean_names(["dup[1]", "dup(1)", "x"])
    assert clean_names(["x", "dup(1)", "dup[1]"]) == names and names["x"] == "x"
    assert len(set(names.values())) == 3 and all(
        name.startswith("dup_1_-") for key, name in names.items() if key != "x"
    )
    long = clean_names(["k" * 250, "k" * 251, "k" * 252])
    assert len(set(long.values())) == 3 and max(map(len, long.values())) == 250 and long["k" * 250] == "k" * 250


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("secret")
    return tmp_path / "secret"


def sent_files(client, run_id, path=None):
    files = []
    for info in client.list_artifacts(run_id, path):
        files += sent_files(client, run_id, info.path) if info.is_dir else [info.path]
    return sorted(files)


@pytest.mark.parametrize(
    "path", ["../secret/key.txt", "../secret", "..", ".", "a/../../secret", "link.txt", "folder", "deep/x"]
)
def test_no_path_and_no_link_of_a_journal_leaves_the_run_folder(journal, uri, secret, path, caplog):
    folder = journal.path.parent
    (folder / "a").mkdir()
    (folder / "link.txt").symlink_to("../secret/key.txt")
    (folder / "folder").symlink_to(secret)
    (folder / "deep").mkdir()
    (folder / "deep" / "x").symlink_to("../../secret/key.txt")
    for name in (path, str(secret / "key.txt"), path):
        journal.append("artifact", path=name)
    client, run_id = ship(journal, uri)
    assert sent_files(client, run_id) == []
    assert len(caplog.records) == 2 and all("skipped artifact" in record.message for record in caplog.records)


def test_folder_is_sent_without_links_out_of_it_pipes_and_loops(journal, uri, secret, caplog):
    """Targets of links inside the run folder are sent, each folder once. Nothing blocks."""
    raw = journal.path.parent / "raw"
    (raw / "sub").mkdir(parents=True)
    (raw / "a.txt").write_text("a")
    (raw / "sub" / "b.txt").write_text("b")
    (raw / "inside.txt").symlink_to("sub/b.txt")
    (raw / "key.txt").symlink_to(secret / "key.txt")
    (raw / "secret").symlink_to(secret)
    (raw / "loop").symlink_to("loop")
    (raw / "again").symlink_to("../raw")
    (raw / "gone").symlink_to("nowhere")
    (raw / "null").symlink_to("/dev/zero")
    os.mkfifo(raw / "pipe")
    (raw / os.fsdecode(b"\xff.txt")).write_text("x")
    journal.append("artifact", path="raw")
    client, run_id = ship(journal, uri)
    assert sent_files(client, run_id) == ["raw/a.txt", "raw/inside.txt", "raw/sub/b.txt"]
    assert Path(client.download_artifacts(run_id, "raw/inside.txt")).read_text() == "b"
    names = sorted(Path(record.args[0]).name for record in caplog.records)
    assert names == sorted(["\\udcff.txt", "again", "gone", "key.txt", "loop", "null", "pipe", "secret"])


def test_file_that_goes_while_its_folder_is_sent_is_left_out(journal, uri, monkeypatch, caplog):
    folder = journal.path.parent / "raw"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
    log_artifact = MlflowClient.log_artifact

    def log(client, run_id, file, place):
        (folder / "b").unlink(missing_ok=True)
        log_artifact(client, run_id, file, place)

    monkeypatch.setattr(MlflowClient, "log_artifact", log)
    journal.append("artifact", path="raw")
    client, run_id = ship(journal, uri)
    assert sent_files(client, run_id) == ["raw/a", "raw/c"]
    assert [record.getMessage() for record in caplog.records] == [f"skipped artifact {folder / 'b'}: it cannot be read"]


def test_position_from_elsewhere_moves_nothing_into_the_run_of_another(journal, uri, tmp_path):
    """The position file first names another's run, and then its own run at an offset inside a line."""
    second = Journal(tmp_path / "other")
    second.start(experiment="e", run_name="another")
    client, foreign = ship(second, uri)
    journal.metrics({"loss": 1.0}, 1)
    start = {"journal": journal.identity, "experiment_id": "1", "offset": 0, "artifacts": []}
    (journal.path.parent / STATE).write_text(json.dumps({uri: start | {"run_id": foreign}}))
    run_id = ship(journal, uri)[1]
    assert run_id != foreign and client.get_run(foreign).data.metrics == {}
    for offset in (7, 10**9, -1, 10**30):
        (journal.path.parent / STATE).write_text(json.dumps({uri: start | {"run_id": run_id, "offset": offset}}))
        journal.metrics({"loss": 2.0}, offset % 97)
        assert ship(journal, uri)[1] == run_id
    assert len(client.get_metric_history(run_id, "loss")) == 5
