"""AskPeople: predictions go into the queue, and stay on disk if MLflow fails."""

import shlex
from pathlib import Path

import lightning as L
import pytest

from data_modules.feedback.__main__ import _parser
from data_modules.feedback.people import AskPeople
from data_modules.offline import OfflineDataModule
from data_modules.pendulum import PendulumDataModule
from lightning_nlf.networks import GaussianPolicy
from lightning_nlf.objectives import ReinforcePolicy


def predicted(data, ask: AskPeople, **knobs) -> None:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir="run", callbacks=[ask], **knobs,
    )  # fmt: skip
    trainer.predict(ReinforcePolicy(policy=GaussianPolicy(4, 1)), data)


@pytest.fixture(autouse=True)
def dead(tmp_path, monkeypatch):
    """Empty working folder, and a server that does not answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def test_a_rehearsal_asks_nobody():
    predicted(PendulumDataModule(evaluation_episodes=1), AskPeople("q"), fast_dev_run=True)
    assert not Path("run").exists()


def test_what_nobody_can_judge_is_refused_before_it_is_predicted(dead, tmp_path):
    with pytest.raises(ValueError, match="people cannot judge the predictions of OfflineDataModule"):
        AskPeople("q").on_predict_start(trainer_of(OfflineDataModule("rows.pt")), None)


def test_several_processes_are_refused():
    trainer = trainer_of(PendulumDataModule())
    trainer.strategy.world_size = 2
    with pytest.raises(ValueError, match="got 2 processes, supports one"):
        AskPeople("q").on_predict_start(trainer, None)


def trainer_of(data) -> L.Trainer:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.datamodule = data
    return trainer


def test_the_command_that_is_told_asks_the_same():
    ask = AskPeople("my queue", scale=(0, 10), reviewers=("ana", "ben"), experiment="other")
    options = _parser().parse_args(shlex.split(ask.again(Path("x.jsonl")))[3:])
    assert (str(options.file), options.queue, options.scale) == ("x.jsonl", "my queue", [0, 10])
    assert (options.reviewers, options.experiment) == (["ana", "ben"], "other")


@pytest.mark.slow
def test_where_mlflow_does_not_answer_the_prediction_stays_and_the_next_command_is_told():
    command = "python -m data_modules.feedback ask run/predictions/filmed.jsonl --queue 'my queue'"
    with pytest.raises(
        ValueError, match=f"127.0.0.1:9 reports: .* The predictions are saved; submit them with: {command}"
    ):
        predicted(PendulumDataModule(evaluation_episodes=1), AskPeople("my queue"))
    assert len(Path("run/predictions/filmed.jsonl").read_text().splitlines()) == 2
