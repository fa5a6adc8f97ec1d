"""Fits on a file of feedback with held-out prompts and no callback named: what is the best, and what is never lost."""

from pathlib import Path

import pytest
import torch

from data_modules.feedback import Judgement, write
from lightning_nlf.cli.command_line import main

QUIET = "trainer: {max_epochs: 3, logger: false, enable_progress_bar: false, log_every_n_steps: 1}\n"
DATA = """
data:
  class_path: data_modules.feedback.FeedbackDataModule
  init_args:
    path: feedback.jsonl
    tokenizer: {class_path: data_modules.text.WordTokenizer}
    val_share: 0.25
    minibatches: 3
"""
POLICY = "{class_path: lightning_nlf.networks.GRUPolicy, init_args: {vocabulary: 16, width: 8}}"
REWARD = "{class_path: lightning_nlf.networks.GRUReward, init_args: {vocabulary: 16, width: 8}}"
MODELS = {
    "mixed": (f"MixedFeedbackPolicy, init_args: {{policy: {POLICY}, divergence: nll}}", "val/imitation"),
    "dpo": (f"DPOPolicy, init_args: {{policy: {POLICY}}}", "val/preference"),
    "kto": (f"KTOPolicy, init_args: {{policy: {POLICY}, threshold: 0.5}}", "val/kto"),
    "reward": (f"BradleyTerryReward, init_args: {{reward: {REWARD}}}", "val/loss"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        Path("feedback.jsonl"),
        [
            Judgement(" ".join(["q"] * (i + 1)), ("a b", "c"), score=(0.0, 1.0), ranking="B > A", expected="b a")
            for i in range(16)
        ],
    )


def fit(name, *flags):
    use = {"mixed": "[score, ranking, expected]", "dpo": "[ranking]", "kto": "[score]", "reward": "[ranking]"}[name]
    model = f"model: {{class_path: lightning_nlf.objectives.{MODELS[name][0]}}}\n"
    Path("run.yaml").write_text(QUIET + model + DATA + f"    use: {use}\n")
    return main(["fit", "--config", "run.yaml", "--run_dir", "run", *flags])


@pytest.mark.parametrize("name", MODELS)
def test_the_best_has_the_least_loss_of_held_out_rows(name):
    """`best` is the checkpoint of the epoch whose validation logged the least of its loss."""
    losses = []

    cli = fit(name)
    checkpoints = {path.stem: torch.load(path, weights_only=True) for path in Path("run/checkpoints").iterdir()}
    assert set(checkpoints) == {"best", "last"} and checkpoints["last"]["epoch"] == 2
    best = next(c for c in cli.trainer.callbacks if type(c).__name__ == "BestCheckpoint")
    assert best._watched == (MODELS[name][1], "min")
    assert best.best_scores is not None
    # The best model, evaluated again, has that loss; the last has no smaller one.
    for which in ("best", "last"):
        measured = cli.trainer.validate(
            cli.model, cli.datamodule, ckpt_path=f"run/checkpoints/{which}.ckpt", verbose=False
        )
        losses.append(next(loader[MODELS[name][1]] for loader in measured if MODELS[name][1] in loader))
    assert losses[0] == pytest.approx(-best.best_scores[0], abs=1e-5)
    assert losses[0] <= losses[1] + 1e-5


@pytest.mark.parametrize("callback", ["BestCheckpoint", "StopWhenSolved"])
def test_a_monitor_that_no_validation_logs_is_refused_before_training(callback, capsys, monkeypatch):
    def collect(*args):
        raise AssertionError("nothing is to be spent")

    monkeypatch.setattr("data_modules.feedback.FeedbackDataModule.collect", collect)
    with pytest.raises(SystemExit) as ending:
        fit("dpo", "--trainer.callbacks", callback, "--trainer.callbacks.monitor", "val/return")
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert ending.value.code == 2
    assert message.startswith(f"error: {callback}.monitor: no validation will log val/return; held-out rows have")
    assert "val/preference" in message
    assert not Path("run").exists()


def test_an_objective_that_cannot_be_validated_leaves_what_it_learned(capsys):
    """A policy gradient has no measure of rows that earned nothing; that comes out after the first epoch."""
    model = f"model: {{class_path: lightning_nlf.objectives.ReinforcePolicy, init_args: {{policy: {POLICY}}}}}\n"
    Path("pg.yaml").write_text(QUIET + model + DATA + "    use: [score]\n")
    with pytest.raises(SystemExit) as ending:
        main(["fit", "--config", "pg.yaml", "--run_dir", "run"])
    assert ending.value.code == 2 and "hold none out (val_share)" in capsys.readouterr().err
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def other_networks():
    fit("dpo", "--trainer.max_epochs", "1")
    Path("run").rename("wide")
    return "wide/checkpoints/last.ckpt"


def other_learning_rate():
    fit("reward", "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.5", "--trainer.max_epochs", "1")
    Path("run").rename("fast")
    return "fast/checkpoints/last.ckpt"


def no_checkpoint():
    Path("broken.ckpt").write_bytes(b"nothing")
    return "broken.ckpt"


@pytest.mark.parametrize("made", [other_networks, other_learning_rate, no_checkpoint])
def test_a_refused_checkpoint_leaves_no_trace(made):
    """Not even of MLflow: the right command gets the folder that the wrong one named."""
    checkpoint = made()
    before = set(Path().rglob("*"))
    logged = ["--trainer.logger", "true", "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"]
    with pytest.raises(SystemExit) as ending:
        fit("reward", "--ckpt_path", checkpoint, *logged)
    assert ending.value.code == 2
    assert set(Path().rglob("*")) - before == {Path("run.yaml")} - before
