"""The command of a run: when its fit ends, and its tags."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from lightning_nlf.studies.runs import Run, command
from lightning_nlf.studies.spec import Solved, Study

APPENDED = "--trainer.callbacks+="


def ending(study: Study, stage: str) -> list[dict[str, object]]:
    words = command(Run("tiny", stage, {}, 1), study)
    callbacks = [json.loads(word.removeprefix(APPENDED)) for word in words if word.startswith(APPENDED)]
    assert all(callback["class_path"] == "lightning_nlf.callbacks.StopWhenSpent" for callback in callbacks)
    return [callback["init_args"] for callback in callbacks]


def test_a_fit_ends_by_the_budgets_of_its_stage(study: Study) -> None:
    arm = replace(study.arms["tiny"], budgets={"env_steps": 50.0, "labels": math.inf}, tune_budgets={"env_steps": 9.0})
    changed = replace(study, arms={"tiny": arm})
    assert ending(changed, "report") == [{"budgets": {"env_steps": 50.0}}]
    assert ending(changed, "tune") == [{"budgets": {"env_steps": 9.0}}]


def test_a_fit_without_budgets_ends_when_solved_or_by_its_yaml(study: Study) -> None:
    free = replace(study, arms={"tiny": replace(study.arms["tiny"], budgets={})})
    assert ending(free, "report") == []
    low = replace(free, solved=Solved(0.5, 2), higher=False, metric="val/loss")
    expected = {"budgets": {}, "threshold": 0.5, "in_a_row": 2, "monitor": "val/loss", "mode": "min"}
    assert ending(low, "report") == [expected]


def test_tags_are_passed_to_the_logger(study: Study) -> None:
    words = command(Run("tiny", "report", {}, 1), study, {"mlflow.parentRunId": "7"})
    assert '--trainer.logger.tags={"mlflow.parentRunId": "7"}' in words
    assert '--trainer.logger.run_name="tiny, seed 1"' in words
    assert Run("tiny", "tune", {"model.lr": 0.1}, 2).title == "tiny, lr 0.1, tuning seed 2"
    assert not any("tags" in word for word in command(Run("tiny", "report", {}, 1), study))
