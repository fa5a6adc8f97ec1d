import json
import os
from pathlib import Path

import pytest

from lightning_nlf.tracking.position import (
    STATE,
    Position,
    read_position,
    resolve_tracking_uri,
    write_position,
)


def test_positions_of_two_servers_are_kept_apart(tmp_path):
    first, second = Position("j", "1", "r1", 10), Position("j", "2", "r2", 20, ["a.png"])
    write_position(tmp_path, "http://one", first)
    write_position(tmp_path, "http://two", second)
    assert read_position(tmp_path, "http://one") == first
    assert read_position(tmp_path, "http://two") == second
    assert read_position(tmp_path, "http://three") is None
    assert [path.name for path in tmp_path.iterdir()] == [STATE]  # no temporary file is left


ENTRY = {"journal": "j", "experiment_id": "1", "run_id": "r", "offset": 0, "artifacts": []}
WRONG = [
    json.dumps({"http://one": ENTRY | {name: value}})
    for name, value in {"run_id": 1, "offset": "7", "journal": None, "artifacts": [1], "experiment_id": []}.items()
]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"http://one": {"unknown": 1}}', "[" * 9000, *WRONG])
def test_damaged_file_is_as_good_as_none_and_is_replaced(tmp_path, content):
    (tmp_path / STATE).write_text(content)
    assert read_position(tmp_path, "http://one") is None
    write_position(tmp_path, "http://one", Position("j", "1", "r"))
    assert read_position(tmp_path, "http://one") == Position("j", "1", "r", 0, [])


def test_pipe_in_its_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / STATE)
    write_position(tmp_path, "http://one", Position("j", "1", "r"))
    assert read_position(tmp_path, "http://one") == Position("j", "1", "r")


def test_link_in_the_place_of_the_temporary_file_is_not_written_through(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".{STATE}.{os.getpid()}").symlink_to(tmp_path / "mine.txt")
    write_position(tmp_path / "run", "http://one", Position("j", "1", "r"))
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [STATE]


def test_store_is_above_the_run_folder_unless_said_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri(Path("outputs/run")) == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable")
    assert resolve_tracking_uri(Path("outputs/run")) == "http://variable"
    assert resolve_tracking_uri(Path("outputs/run"), "http://given") == "http://given"
