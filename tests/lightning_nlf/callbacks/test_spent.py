"""End of a fit by budget: where the last validation lies, also after a kill at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lightning_nlf.callbacks import LastCheckpoint, StopWhenSpent

ZEROS = [(0.0, 0.0)] * 9


class Validations(L.Callback):
    """Callback that keeps the iteration of each validation. The validation after `complete` ones is interrupted."""

    def __init__(self, complete: int = 99) -> None:
        self.complete, self.iterations = complete, list[int]()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self.iterations) == self.complete:
            raise KeyboardInterrupt
        self.iterations.append(trainer.current_epoch + 1)


def test_the_last_validation_lies_at_the_budget_or_just_after(fit: Any) -> None:
    """2 optimizer steps an iteration, validations in iterations 4 and 8: 9 steps are spent after iteration 5."""
    watch = Validations()
    stop = StopWhenSpent({"optimizer_steps": 9})
    trainer, _ = fit.scripted(ZEROS, [watch, stop], steps=2, every=4)
    assert (watch.iterations, trainer.current_epoch, trainer.global_step) == ([4, 5], 5, 10)


def test_no_second_validation_where_one_was_due(fit: Any) -> None:
    watch = Validations()
    fit.scripted(ZEROS, [watch, StopWhenSpent({"optimizer_steps": 8})], steps=2, every=4)
    assert watch.iterations == [4]


def test_validations_within_iterations_end_nothing(fit: Any) -> None:
    """5 steps an iteration and a validation every second one: after steps 2, 4, 7 (2 of the second), 9, and 10."""
    watch = Validations()
    trainer, _ = fit.scripted(ZEROS, [watch, StopWhenSpent({"optimizer_steps": 6})], steps=5, val_check_interval=2)
    assert (watch.iterations, trainer.global_step) == ([1, 1, 2, 2, 2], 10)


@pytest.mark.parametrize("budgets, last", [({"optimizer_steps": 4, "iteration": 3}, 3), ({"iteration": 1}, 1)])
def test_all_budgets_must_be_spent(fit: Any, budgets: dict[str, float], last: int) -> None:
    trainer, _ = fit.scripted(ZEROS, [StopWhenSpent(budgets)], steps=2)
    assert trainer.current_epoch == last


def test_without_validations_the_fit_ends_too(fit: Any) -> None:
    trainer, _ = fit.scripted(ZEROS, [StopWhenSpent({"iteration": 2})], limit_val_batches=0)
    assert trainer.current_epoch == 2


def test_a_larger_budget_than_the_fit_changes_nothing(fit: Any) -> None:
    trainer, _ = fit.scripted(ZEROS, [StopWhenSpent({"iteration": 99})])
    assert trainer.current_epoch == 9


@pytest.mark.parametrize(
    "mode, threshold, values, last",
    [("max", 2, [3, 1, 2, 2, 5], 4), ("min", 2, [1, 3, 2, 1, 0], 4), ("max", None, [9, 9, 9, 9, 9], 5)],
)
def test_a_solved_fit_ends_before_its_budget(fit: Any, mode: Any, threshold: Any, values: Any, last: int) -> None:
    """Two values in a row that reach 2; without a threshold, the fit goes on to its budget of 5 iterations."""
    stop = StopWhenSpent({"iteration": 5}, threshold, in_a_row=2, mode=mode)
    trainer, _ = fit.scripted([(float(value), 0.0) for value in [*values, 0, 0]], [stop])
    assert trainer.current_epoch == last


@pytest.mark.parametrize(
    "steps, options, before, last", [(2, {"every": 4}, [4], 5), (5, {"val_check_interval": 2}, [1, 1, 2, 2], 2)]
)
def test_a_fit_that_dies_in_its_last_validation_validates_when_resumed(
    fit: Any, steps: int, options: Any, before: list[int], last: int
) -> None:
    def callbacks(validations: Validations) -> list[L.Callback]:
        return [validations, StopWhenSpent({"optimizer_steps": 9}), LastCheckpoint()]

    first, second = Validations(complete=len(before)), Validations()
    with pytest.raises(SystemExit):
        fit.scripted(ZEROS, callbacks(first), steps=steps, **options)
    path: Path = fit.folder / "checkpoints" / "last.ckpt"
    trainer, _ = fit.scripted(ZEROS, callbacks(second), steps=steps, resume=path, **options)
    assert (first.iterations, second.iterations, trainer.global_step) == (before, [last], 10)


def test_an_ended_fit_stays_as_it_is_when_resumed(fit: Any) -> None:
    last = fit.folder / "checkpoints" / "last.ckpt"
    fit.scripted(ZEROS, [StopWhenSpent({"iteration": 3}), LastCheckpoint()], every=2)
    watch = Validations()
    trainer, _ = fit.scripted(ZEROS, [watch, StopWhenSpent({"iteration": 3}), LastCheckpoint()], resume=last, every=2)
    assert (watch.iterations, trainer.current_epoch) == ([], 3)
    trainer, _ = fit.scripted(ZEROS, [watch, StopWhenSpent({"iteration": 5}), LastCheckpoint()], resume=last, every=2)
    assert (watch.iterations, trainer.current_epoch) == ([4, 5], 5)


def test_an_unknown_counter_is_refused_with_the_counters_of_the_run(fit: Any) -> None:
    with pytest.raises(ValueError, match="budgets: this run does not count tokens; it counts iteration, optimizer_"):
        fit.scripted(ZEROS, [StopWhenSpent({"tokens": 5})])


def test_the_counters_of_a_data_module_count(fit: Any) -> None:
    """Two episodes of at most 20 steps an iteration."""
    _, _, data = fit.pendulum(99, [StopWhenSpent({"env_steps": 50})], every=50)
    assert 50 <= data.counters["env_steps"] < 50 + 40
