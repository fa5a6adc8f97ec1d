"""Fits on a feedback file with held-out prompts and default callbacks: which checkpoint is best, and what is kept."""

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
    "mixed": (f"MixedFeedbackPolicy, init_args: {{policy: {POLICY}, divergence: nll}}", "val/imitation", "min"),
    "dpo": (f"DPOPolicy, init_args: {{policy: {POLICY}}}", "val/accuracy", "max"),
    "kto": (f"KTOPolicy, init_args: {{policy: {POLICY}, threshold: 0.5}}", "val/kto", "min"),
    "reward": (f"BradleyTerryReward, init_args: {{reward: {REWARD}}}", "val/accuracy", "max"),
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
def test_the_best_is_the_best_on_held_out_rows(name):
    """best.ckpt is from the epoch with the best value of the metric that the objective names."""
    _, metric, mode = MODELS[name]
    scores = []

    cli = fit(name)
    checkpoints = {path.stem: torch.load(path, weights_only=True) for path in Path("run/checkpoints").iterdir()}
    assert set(checkpoints) == {"best", "last"} and checkpoints["last"]["epoch"] == 2
    best = next(c for c in cli.trainer.callbacks if type(c).__name__ == "BestCheckpoint")
    assert best._watched == (metric, mode)
    assert best.best_scores is not None
    # The best model has that value when it is evaluated again; the last model is not better.
    for stem in ("best", "last"):
        measured = cli.trainer.validate(
            cli.model, cli.datamodule, ckpt_path=f"run/checkpoints/{stem}.ckpt", verbose=False
        )
        value = next(loader[metric] for loader in measured if metric in loader)
        scores.append(value if mode == "max" else -value)
    assert scores[0] == pytest.approx(best.best_scores[0], abs=1e-5)
    assert scores[0] >= scores[1] - 1e-5


@pytest.mark.parametrize("callback", ["BestCheckpoint", "StopWhenSolved"])
def test_a_monitor_that_no_validation_logs_is_refused_before_training(callback, capsys, monkeypatch):
    def collect(*args):
        raise AssertionError("training has started")

    monkeypatch.setattr("data_modules.feedback.FeedbackDataModule.collect", collect)
    with pytest.raises(SystemExit) as ending:
        fit("dpo", "--trainer.callbacks", callback, "--trainer.callbacks.monitor", "val/return")
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert ending.value.code == 2
    assert message.startswith(f"error: {callback}.monitor: the validation does not log val/return. For held-out rows")
    assert "val/preference" in message
    assert not Path("run").exists()


def test_an_objective_that_cannot_be_validated_leaves_what_it_learned(capsys):
    """A policy gradient cannot be measured on rows without rewards. This is noticed only after the first epoch."""
    model = f"model: {{class_path: lightning_nlf.objectives.ReinforcePolicy, init_args: {{policy: {POLICY}}}}}\n"
    Path("pg.yaml").write_text(QUIET + model + DATA + "    use: [score]\n")
    with pytest.raises(SystemExit) as ending:
        main(["fit", "--config", "pg.yaml", "--run_dir", "run"])
    assert ending.value.code == 2 and "set val_share to 0" in capsys.readouterr().err
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def other_networks():
    fit("dpo", "--trainer.max_epochs", "1")
    Path("run").rename("wide")
    return "wide/checkpoints/last.ckpt"


def other_learning_rate():
    fit("reward", "--model.lr", "0.5", "--trainer.max_epochs", "1")
    Path("run").rename("fast")
    return "fast/checkpoints/last.ckpt"


def no_checkpoint():
    Path("broken.ckpt").write_bytes(b"nothing")
    return "broken.ckpt"


@pytest.mark.parametrize("make", [other_networks, other_learning_rate, no_checkpoint])
def test_a_refused_checkpoint_leaves_no_trace(make):
    """No file remains, not even of MLflow, so that the corrected command can use the same folder."""
    checkpoint = make()
    before = set(Path().rglob("*"))
    logged = ["--trainer.logger", "true", "--model.lr", "0.1"]
    with pytest.raises(SystemExit) as ending:
        fit("reward", "--ckpt_path", checkpoint, *logged)
    assert ending.value.code == 2
    assert set(Path().rglob("*")) - before == {Path("run.yaml")} - before
