"""A run folder that is deleted while the run writes to it."""

import shutil
from pathlib import Path

import lightning as L
import pytest

from lightning_nlf.cli.command_line import main
from lightning_nlf.tracking import logger as logger_module
from lightning_nlf.tracking.journal import read_records

CONF = Path(__file__).parents[3] / "conf"
FIT = ["fit", "--config", str(CONF / "pendulum/reinforce.yaml"), "--config", str(CONF / "overlays/debug.yaml")]


class Deleting(L.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            shutil.rmtree("run")


def test_a_deleted_run_folder_is_reported_and_written_again(tmp_path, monkeypatch, caplog):
    """The journal is complete, because it is still open. The next iterations write the other files again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logger_module.Shipper, "start", lambda self: None)
    monkeypatch.setattr(logger_module.Shipper, "close", lambda self, *seconds: 0)
    Path("deleting.py").write_text(f"import runpy\nDeleting = runpy.run_path({__file__!r})['Deleting']\n")
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "1", "--run_dir", "run"]
    flags += ["--trainer.callbacks", "deleting.Deleting", "--data.evaluation_episodes", "2"]
    main([*FIT, *flags])
    assert [record.getMessage() for record in caplog.records if "was deleted" in record.getMessage()] == [
        "run was deleted during the run; writing its files again"
    ]
    assert {path.name for path in Path("run").iterdir()} >= {"config.yaml", "raw", "journal.jsonl", "checkpoints"}
    assert {path.name for path in Path("run/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    records = [record for record, _ in read_records(Path("run/journal.jsonl"))]
    assert [record["kind"] for record in (records[0], records[-1])] == ["start", "end"]
    iterations = [record["values"]["iteration"] for record in records if "iteration" in record.get("values", {})]
    assert sorted(set(iterations)) == [1, 2, 3, 4]
    assert records[-1]["status"] == "FINISHED"


def test_a_folder_that_cannot_be_written_again_ends_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logger_module.Shipper, "start", lambda self: None)
    monkeypatch.setattr(logger_module.Shipper, "close", lambda self, *seconds: 0)
    Path("taking.py").write_text(
        "import shutil\nfrom pathlib import Path\nimport lightning as L\n"
        "class Taking(L.Callback):\n"
        "    def on_train_epoch_start(self, trainer, pl_module):\n"
        "        if trainer.current_epoch == 1:\n"
        "            shutil.rmtree('run')\n"
        "            Path('run').touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--trainer.max_epochs", "3", "--run_dir", "run", "--trainer.callbacks", "taking.Taking"]
    with pytest.raises(SystemExit) as ending:
        main([*FIT, *flags])
    assert ending.value.code == 1
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(message) == 1 and "run" in message[0]
