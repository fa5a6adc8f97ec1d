"""Every old path of a yaml has a new path, which exists."""

import csv
from pathlib import Path

import pytest

from data_modules.feedback.__main__ import main as feedback
from lightning_nlf.moved_yamls import MOVED, new_place

CONF = Path(__file__).parents[2] / "conf"
ROWS = list(csv.DictReader((CONF / MOVED).open()))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["old"])
def test_an_old_path_names_a_yaml_that_is_there(row):
    new = new_place(str(CONF / row["old"]))
    assert new == str(CONF / row["new"]) and Path(new.split()[0]).is_file() and not (CONF / row["old"]).exists()


def test_a_path_that_never_was_has_no_new_place(tmp_path):
    assert new_place(str(CONF / "rlhf" / "nothing.yaml")) is None
    assert new_place(str(tmp_path / "rlhf" / "dpo.yaml")) is None


def test_a_judge_at_its_old_path_is_one_line(tmp_path, capsys):
    replies = tmp_path / "in.jsonl"
    replies.write_text('{"prompt": "a", "responses": ["b"]}\n')
    arguments = ["judge", str(replies), "--config", str(CONF / "feedback/judge.yaml"), "--out", str(tmp_path / "out")]
    assert feedback(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"it is now {CONF / 'providers/judge.yaml'}")
