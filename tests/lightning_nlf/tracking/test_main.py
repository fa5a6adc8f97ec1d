import subprocess
import sys

import pytest

from lightning_nlf.tracking.__main__ import main
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    done = subprocess.run([sys.executable, "-m", "lightning_nlf.tracking"], check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
