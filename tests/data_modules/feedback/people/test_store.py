import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient

from data_modules.feedback.people.database import file_of
from data_modules.feedback.people.store import opened


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////data/a%2Fb%3F/mlflow.db?timeout=3", Path("/data/a/b?/mlflow.db")),
        ("sqlite+pysqlite:////data/a b/mlflow.db", Path("/data/a b/mlflow.db")),
        ("sqlite://", None),
        ("http://server/mlflow.db", None),
    ],
)
def test_file_of_a_uri_is_the_one_that_mlflow_opens(uri, path):
    assert file_of(uri) == path


@pytest.mark.slow
def test_experiment_below_an_odd_path_has_its_files_beside_the_data_base(tmp_path):
    (tmp_path / "a%2Fb?#").mkdir()
    uri = f"sqlite+pysqlite:///{tmp_path}/a%252Fb%3F%23/mlflow.db"
    with opened(uri, "e", create=True) as store:
        place = MlflowClient().get_experiment(store.id).artifact_location
    assert unquote(place) == f"{tmp_path}/a%2Fb?#/mlartifacts"
    assert [path.name for path in tmp_path.rglob("*")] == ["a%2Fb?#", "mlflow.db"]


@pytest.mark.slow
def test_whoever_is_killed_while_the_data_base_is_made_leaves_nothing_in_the_way(tmp_path):
    """A process killed after some tables exist leaves no database with the final name; the next process makes it."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    program = (
        "import sys; from data_modules.feedback.people.store import opened\n"
        "with opened(sys.argv[1], 'e', create=True): pass"
    )
    process = subprocess.Popen([sys.executable, "-c", program, uri], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not any(path.stat().st_size > 100_000 for path in tmp_path.glob(".mlflow.db-*/mlflow.db")):
        assert process.poll() is None and time.monotonic() < end
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    with opened(uri, "e", create=True) as store:
        assert MlflowClient().get_experiment(store.id).name == "e"


@pytest.mark.slow
def test_two_threads_make_a_data_base_one_after_the_other(tmp_path):
    """A run's logger holds the folder's lock while it creates tables; simultaneous migrations would interfere."""
    ready = threading.Event()

    def make():
        with opened(f"sqlite:///{tmp_path}/mlflow.db", "e", create=True):
            ready.set()

    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    thread = threading.Thread(target=make)
    thread.start()
    assert not ready.wait(8) and not list(tmp_path.iterdir())  # creating a database takes about two seconds
    os.close(folder)
    assert ready.wait(120)
    thread.join()


@pytest.mark.slow
def test_a_store_that_is_none_is_told_in_one_line(tmp_path):
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("CREATE TABLE experiments (x INTEGER)")
    with (
        pytest.raises(ValueError, match=r"^tracking_uri: .*mlflow\.db") as error,
        opened(f"sqlite:///{tmp_path}/mlflow.db", "e", create=True),
    ):
        pass
    assert "\n" not in str(error.value)
