import json
import os
import subprocess
import sys

import pytest

from lightning_nlf.tracking.__main__ import main
from lightning_nlf.tracking.destination import Destination
from lightning_nlf.tracking.journal import Journal


@pytest.fixture
def run(tmp_path):
    journal = Journal(tmp_path / "run")
    journal.start(experiment="e", run_name="r")
    journal.metrics({"loss": 1.0}, 0)
    journal.append("end", status="FINISHED")
    return tmp_path / "run"


def test_sync_says_what_it_sent_and_where(run, capsys):
    assert main(["sync", str(run)]) == 0
    first = capsys.readouterr().out
    assert first.startswith(f"{run}: 3 sent, run ")
    assert first.rstrip().endswith(f" at sqlite:///{run.parent}/mlflow.db")
    assert main(["sync", str(run)]) == 0
    assert capsys.readouterr().out == first.replace("3 sent", "0 sent")


def test_register_prints_what_to_fetch(run, capsys):
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    (run / "config.yaml").write_text("seed: 1\n")
    assert main(["register", str(run), "--name", "pendulum", "--alias", "good"]) == 0
    assert capsys.readouterr().out == "models:/pendulum/1\nmodels:/pendulum@good\n"


def test_ui_prints_the_command(tmp_path, capsys):
    (tmp_path / "mlflow.db").write_bytes(b"")
    assert main(["ui", str(tmp_path), "--print", "--port", "5001"]) == 0
    command = f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db --port 5001 --workers 1\n"
    assert capsys.readouterr().out == command


def test_ui_prints_the_page_of_the_runs(run, capsys):
    assert main(["sync", str(run)]) == 0
    capsys.readouterr()
    assert main(["ui", str(run.parent), "--print"]) == 0
    page = "e: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    assert capsys.readouterr().out.splitlines()[1:] == [page]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["sync", "nothing"], "nothing has no journal"),
        (["sync", "run", "--tracking_uri", "http://127.0.0.1:9"], "Connection refused"),
        (["sync", "run", "--tracking_uri", "nonsense://x"], "nonsense"),
        (["register", "run", "--name", "x"], "best.ckpt is missing"),
        (["ui", "nowhere"], "nowhere has no mlflow.db"),
    ],
)
def test_error_is_one_line_and_exit_code_2(run, arguments, cause, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and cause in output.err
    assert output.err.count("\n") == 1 and output.out == ""


def test_module_runs_without_lightning_and_torch():
    program = (
        "import sys, lightning_nlf.tracking.__main__ as m; m._parser(); print({'torch', 'mlflow'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"
    process = subprocess.run(
        [sys.executable, "-m", "lightning_nlf.tracking"], check=False, capture_output=True, text=True
    )
    assert process.returncode == 2 and "Traceback" not in process.stderr


def test_damaged_journals_are_named_by_line_and_hold_up_no_other_run(run, capsys):
    """The first journal has no start, the second has a wrong value and an unknown kind, and the third is valid."""
    folder = run.parent
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for name in ("headless", "damaged"):
        (folder / name).mkdir()
    (folder / "headless" / "journal.jsonl").write_bytes(b"\xff\n" + lines[1])
    start = lines[0].replace(json.loads(lines[0])["journal"].encode(), b"other")
    wrong = b'{"kind":"metrics","time":1,"step":0,"values":{"loss":[]}}\n'
    content = start + wrong + lines[1] + b'{"kind":"sound","time":1}\n' + lines[2]
    (folder / "damaged" / "journal.jsonl").write_bytes(content)
    command = ["sync", *(str(folder / name) for name in ("headless", "damaged", "run"))]
    for numbers in ((5, 3), (0, 0)):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert [line.split(": ")[1].split(" sent")[0] for line in out.splitlines()] == list(map(str, numbers))
        assert err.splitlines() == [
            f"error: {folder}/headless/journal.jsonl:1: not valid JSON; the journal has no start record, "
            "so nothing was sent",
            f"error: {folder}/damaged/journal.jsonl:2: metrics: values is {{'loss': []}}, not an object of numbers; "
            "2 such lines are skipped, the rest was sent",
        ]
    client, position = Destination(folder / "damaged", f"sqlite:///{folder}/mlflow.db").open()
    assert client.get_run(position.run_id).data.metrics == {"loss": 1.0}
    assert client.get_run(position.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "link", "empty"])
def test_journal_that_is_no_file_of_its_folder_is_refused_at_once(run, kind, capsys):
    path = run.parent / "odd" / "journal.jsonl"
    path.parent.mkdir()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case _:
            path.symlink_to({"device": "/dev/zero", "loop": path, "link": run / "journal.jsonl"}[kind])
    before = (run / "journal.jsonl").read_bytes()
    assert main(["sync", str(path.parent)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}") and (run / "journal.jsonl").read_bytes() == before
    assert not (run.parent / "mlflow.db").exists()
