import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lightning_nlf.tracking.journal import (
    JOURNAL,
    Journal,
    JournalError,
    count_records,
    last_lifecycle,
    read_records,
    repair,
    writer_alive,
)
from lightning_nlf.tracking.position import Position, write_position

WRITER = """
import sys, time
from lightning_nlf.tracking.journal import Journal
journal = Journal(sys.argv[1])
journal.start()
step = 0
while True:
    journal.metrics({"loss": step / 2}, step)
    step += 1
"""


def records(folder):
    return [record for record, _ in read_records(folder / JOURNAL)]


def test_records_come_back_in_order_with_their_time(tmp_path):
    before = int(time.time() * 1000)
    journal = Journal(tmp_path / "new" / "run")
    journal.append("params", values={"lr": "0.1"})
    journal.metrics({"train/loss": 0.5}, 7)
    journal.append("end", status="FINISHED", time=1234)
    journal.close()
    params, metrics, end = records(tmp_path / "new" / "run")
    assert params["kind"] == "params" and params["values"] == {"lr": "0.1"}
    assert metrics["values"] == {"train/loss": 0.5} and metrics["step"] == 7
    assert before <= params["time"] <= metrics["time"] <= time.time() * 1000
    assert end == {"kind": "end", "time": 1234, "status": "FINISHED"}


def test_nan_and_infinities_are_legal_json_and_numbers_again(tmp_path):
    journal = Journal(tmp_path)
    journal.metrics({"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 1.5}, 0)
    journal.metrics({"large": 1e308, "larger": 1.5e308}, 1)  # finite, their sum is not

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    lines = (tmp_path / JOURNAL).read_text().splitlines()
    values = json.loads(lines[0], parse_constant=refuse)["values"]
    assert values == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.5}
    assert float(values["b"]) == float("inf")
    assert json.loads(lines[1], parse_constant=refuse)["values"] == {"large": 1e308, "larger": 1.5e308}


def test_torn_last_line_is_cut_and_the_rest_kept(tmp_path):
    path = tmp_path / JOURNAL
    path.write_bytes(b'{"kind":"tags","time":1,"values":{}}\n{"kind":"metr')
    assert [record["kind"] for record in records(tmp_path)] == ["tags"]  # a reader waits for the rest
    assert path.stat().st_size == 50
    journal = Journal(tmp_path)
    assert path.stat().st_size == 37
    journal.append("end", status="FINISHED")
    assert [record["kind"] for record in records(tmp_path)] == ["tags", "end"]


@pytest.mark.parametrize(
    ("content", "cut"), [(b"", 0), (b"{}\n", 0), (b"torn", 4), (b"{}\n" + b"x" * 200_000, 200_000), (b"{}\n\n{", 1)]
)
def test_repair_says_how_much_it_cut(tmp_path, content, cut):
    path = tmp_path / JOURNAL
    path.write_bytes(content)
    assert repair(path) == cut
    assert path.read_bytes() == content[: len(content) - cut]


def test_repair_of_a_missing_file_creates_none(tmp_path):
    assert repair(tmp_path / JOURNAL) == 0
    assert not (tmp_path / JOURNAL).exists()


def test_unreadable_line_is_told_and_the_next_ones_are_read(tmp_path):
    (tmp_path / JOURNAL).write_bytes(b'\0\0\0\n[1]\n{"kind":"end","time":1,"status":"FAILED"}\n')
    assert [record["kind"] for record in records(tmp_path)] == ["unreadable", "unreadable", "end"]


def test_offsets_continue_where_reading_stopped(tmp_path):
    journal = Journal(tmp_path)
    for step in range(3):
        journal.metrics({"loss": float(step)}, step)
    offsets = [offset for _, offset in read_records(tmp_path / JOURNAL)]
    assert [record["step"] for record, _ in read_records(tmp_path / JOURNAL, offsets[0])] == [1, 2]
    assert count_records(tmp_path / JOURNAL, offsets[1]) == 1


def test_identity_is_kept_by_the_next_journal_of_the_folder(tmp_path):
    first = Journal(tmp_path)
    first.start()
    first.close()
    assert Journal(tmp_path).identity == first.identity
    assert Journal(tmp_path / "other").identity != first.identity


def test_full_disk_is_one_clear_error_and_leaves_whole_lines(tmp_path):
    journal = Journal(tmp_path)
    journal.metrics({"loss": 1.0}, 0)
    backup = os.dup(journal._file.fileno())
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._file.fileno())
    journal.metrics({"system/memory_mb": 1.0}, 1, optional=True)  # optional, so no error
    with pytest.raises(JournalError, match="journal.jsonl: No space left on device"):
        journal.metrics({"loss": 2.0}, 1)
    journal.append("end", status="FAILED")
    os.dup2(backup, journal._file.fileno())  # the disk has space again
    journal.metrics({"loss": 3.0}, 2)
    assert [record["step"] for record in records(tmp_path)] == [0, 2]


def test_half_written_line_is_taken_back(tmp_path):
    """A file limit of 4,000 bytes, not a multiple of a line (139 bytes), acts as a disk that stores half a line."""
    program = """
import resource, signal, sys
from lightning_nlf.tracking.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    for step in range(1000):
        journal.append("tags", values={"text": "0" * 81})
except OSError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "File too large" in process.stdout
    content = (tmp_path / JOURNAL).read_bytes()
    assert 3800 < len(content) < 4000 and content.endswith(b"}\n")


def test_folder_that_cannot_be_made_is_a_journal_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot write"):
        Journal(tmp_path / "file" / "run")


def test_second_writer_is_refused_until_the_first_is_killed(tmp_path, wait_for):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    try:
        wait_for(lambda: count_records(tmp_path / JOURNAL) > 100, 30)
        assert writer_alive(tmp_path / JOURNAL)
        with pytest.raises(JournalError, match=f"being written by process {process.pid}"):
            Journal(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
    # The process is not reaped yet, but a zombie does not count as alive.
    wait_for(lambda: not writer_alive(tmp_path / JOURNAL), 10)
    process.wait()
    journal = Journal(tmp_path)
    journal.start()
    steps = [record["step"] for record in records(tmp_path) if record["kind"] == "metrics"]
    assert steps == list(range(len(steps))) and len(steps) > 90
    assert last_lifecycle(tmp_path / JOURNAL)["pid"] == os.getpid()


def test_writer_elsewhere_is_alive_while_it_is_heard(tmp_path):
    path = tmp_path / JOURNAL
    path.write_text('{"kind":"start","time":1,"journal":"a","host":"elsewhere.invalid","pid":1}\n')
    assert writer_alive(path)
    os.utime(path, (time.time() - 121, time.time() - 121))
    assert not writer_alive(path)


def test_the_journal_needs_neither_torch_nor_mlflow():
    program = "import sys, lightning_nlf.tracking.journal; print([m for m in ('torch', 'mlflow') if m in sys.modules])"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    """Files of running processes, such as a simultaneous `sync`, stay."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living = (tmp_path / f".mlflow.json.{number}" for number in (ended.pid, os.getppid()))
    for path in (dead, living):
        path.touch()
    write_position(tmp_path, "http://127.0.0.1:9", Position("a", "b", "c"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, "mlflow.json"])
