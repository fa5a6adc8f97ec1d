from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_nlf.callbacks import BestCheckpoint, Exhibits, LastCheckpoint, Provenance
from lightning_nlf.checkpoint_io import SafeCheckpointIO
from lightning_nlf.tracking.journal import read_records
from lightning_nlf.tracking.logger import MLflowJournalLogger
from lightning_nlf.tracking.shipper import Shipper


def weight(path: Path) -> float:
    """The only weight of the scripted module, which equals the number of optimizer steps."""
    return float(SafeCheckpointIO().load_checkpoint(path)["state_dict"]["weight"])


def test_both_files_are_written_and_nothing_else(fit: Any) -> None:
    fit.scripted([(1, 0), (3, 0), (2, 0)], [BestCheckpoint(), LastCheckpoint()])
    folder = fit.folder / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert weight(folder / "best.ckpt") == 2
    assert weight(folder / "last.ckpt") == 3


def test_a_tie_goes_to_the_better_sampled_return_and_then_to_the_first(fit: Any) -> None:
    """The return is 1000 in epochs 2 to 5. Sampled it is 900, 950, 950, 940, so epoch 3 is the first with 950."""
    script = [(10, 999), (1000, 900), (1000, 950), (1000, 950), (1000, 940), (999, 1000)]
    best = BestCheckpoint()
    fit.scripted(script, [best])
    assert weight(fit.folder / "checkpoints/best.ckpt") == 3
    assert best.best_scores == (1000, 950)
    assert best.best_model_path == str(fit.folder / "checkpoints/best.ckpt")


def test_without_a_tie_break_the_first_stays(fit: Any) -> None:
    fit.scripted([(1000, 900), (1000, 950)], [BestCheckpoint(tie_break=None)])
    assert weight(fit.folder / "checkpoints/best.ckpt") == 1


def test_the_least_is_the_best_in_mode_min(fit: Any) -> None:
    """The return is 2 in epochs 2 and 3. The second has the smaller tie break."""
    fit.scripted([(3, 0), (2, 9), (2, 8), (4, 0)], [BestCheckpoint(mode="min")])
    assert weight(fit.folder / "checkpoints/best.ckpt") == 3


def test_nan_is_never_the_best(fit: Any) -> None:
    fit.scripted([(float("nan"), 0), (1, 0), (float("nan"), 0)], [BestCheckpoint()])
    assert weight(fit.folder / "checkpoints/best.ckpt") == 2


def test_a_stale_metric_of_an_earlier_validation_is_not_saved_again(fit: Any) -> None:
    """Only epochs 2 and 4 are validated, and epoch 4 is worse."""
    fit.scripted([(9, 9), (5, 0), (9, 9), (4, 0), (9, 9)], [BestCheckpoint()], every=2)
    assert weight(fit.folder / "checkpoints/best.ckpt") == 2


def test_a_missing_metric_is_named(fit: Any) -> None:
    with pytest.raises(ValueError, match="val/score"):
        fit.scripted([(1, 0)], [BestCheckpoint(monitor="val/score")])


@pytest.mark.parametrize("order", [("last", "best"), ("best", "last")])
def test_a_run_resumed_from_last_keeps_its_best(fit: Any, order: tuple[str, str]) -> None:
    """The best is epoch 2 (return 5). The resumed run reaches 4, which is above the 3 of epoch 1, and then 6."""
    script = [(3.0, 0.0), (5.0, 0.0), (4.0, 0.0), (6.0, 0.0)]
    make: dict[str, Any] = {"last": LastCheckpoint, "best": BestCheckpoint}
    folder = fit.folder / "checkpoints"
    fit.scripted(script, [make[name]() for name in order], epochs=2)
    fit.scripted(script, [make[name]() for name in order], epochs=3, resume=folder / "last.ckpt")
    assert weight(folder / "best.ckpt") == 2
    assert weight(folder / "last.ckpt") == 3
    fit.scripted(script, [make[name]() for name in order], epochs=4, resume=folder / "last.ckpt")
    assert weight(folder / "best.ckpt") == 4


def test_a_best_that_a_kill_prevented_is_written_at_the_resume(fit: Any) -> None:
    """The process ended between last.ckpt and best.ckpt of epoch 2, so best.ckpt is still of epoch 1."""
    script = [(3.0, 0.0), (5.0, 0.0), (4.0, 0.0)]
    folder = fit.folder / "checkpoints"
    fit.scripted(script, [LastCheckpoint(), BestCheckpoint()], epochs=1)
    stale = (folder / "best.ckpt").read_bytes()
    fit.scripted(script, [LastCheckpoint(), BestCheckpoint()], epochs=2, resume=folder / "last.ckpt")
    (folder / "best.ckpt").write_bytes(stale)
    fit.scripted(script, [LastCheckpoint(), BestCheckpoint()], epochs=3, resume=folder / "last.ckpt")
    assert weight(folder / "best.ckpt") == 2


def test_a_run_that_goes_on_in_another_folder_gets_a_best_of_its_own(fit: Any, tmp_path: Path) -> None:
    fit.scripted([(5.0, 0.0), (4.0, 0.0)], [LastCheckpoint(), BestCheckpoint()], epochs=2)
    old, fit.folder = fit.folder, tmp_path / "other"
    script = [(5.0, 0.0), (4.0, 0.0), (3.0, 0.0)]
    fit.scripted(script, [LastCheckpoint(), BestCheckpoint()], epochs=3, resume=old / "checkpoints/last.ckpt")
    assert weight(fit.folder / "checkpoints/best.ckpt") == 3


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(fit: Any, tmp_path: Path) -> None:
    _, straight, counted = fit.pendulum(4, [LastCheckpoint(), BestCheckpoint()], every=2)
    fit.folder = tmp_path / "resumed"
    fit.pendulum(2, [LastCheckpoint(), BestCheckpoint(optimizer=True)], every=2)
    files = [(fit.folder / "checkpoints" / name).rename(tmp_path / name) for name in ("last.ckpt", "best.ckpt")]
    for resume in files:
        trainer, resumed, data_module = fit.pendulum(4, [BestCheckpoint()], every=2, resume=resume)
        assert trainer.current_epoch == 4
        assert data_module.counters == counted.counters and counted.counters["iteration"] == 4
        for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_best_is_for_use_and_holds_no_state_of_the_optimizer(fit: Any) -> None:
    """A test can load best.ckpt, but a fit cannot resume from it."""
    trainer, module, data_module = fit.pendulum(2, [LastCheckpoint(), BestCheckpoint()])
    best, last = (torch.load(fit.folder / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert last.keys() - best.keys() == {"optimizer_states"}
    trainer.test(module, data_module, ckpt_path=str(fit.folder / "checkpoints/best.ckpt"))
    with pytest.raises(ValueError, match="^ckpt_path: the checkpoint has no optimizer state"):
        fit.pendulum(3, [LastCheckpoint()], resume=fit.folder / "checkpoints/best.ckpt")


def test_last_is_written_every_n_iterations_and_at_the_end(fit: Any) -> None:
    weights = []

    class Seen(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            path = fit.folder / "checkpoints/last.ckpt"
            weights.append(weight(path) if path.exists() else 0)

    fit.scripted([(0, 0)] * 5, [Seen(), LastCheckpoint(every_n_iterations=2)])
    assert weights == [0, 1, 2, 2, 4]  # before the first validation there was no file yet
    assert weight(fit.folder / "checkpoints/last.ckpt") == 5
    # A fit can also resume from the checkpoint of the last iteration.
    resume = fit.folder / "checkpoints/last.ckpt"
    trainer, module = fit.scripted([(0, 0)] * 7, [LastCheckpoint(2)], resume=resume)
    assert trainer.current_epoch == 7 and module.weight.item() == 7


def test_every_n_iterations_is_at_least_1() -> None:
    with pytest.raises(ValueError, match="every_n_iterations: got 0"):
        LastCheckpoint(0)


def test_an_iteration_that_raised_is_not_saved(fit: Any, failing_at: Any) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        fit.scripted([(0, 0)] * 5, [LastCheckpoint(), failing_at(3)])
    assert weight(fit.folder / "checkpoints/last.ckpt") == 3


def test_half_an_iteration_does_not_replace_a_whole_one(fit: Any) -> None:
    """With three steps per iteration and a stop after 7, the file is of step 6. A resume ends like a straight run."""
    last = fit.folder / "checkpoints/last.ckpt"
    fit.scripted([(0, 0)] * 9, [LastCheckpoint()], steps=3, max_steps=7)
    assert weight(last) == 6
    trainer, module = fit.scripted([(0, 0)] * 9, [LastCheckpoint()], epochs=4, resume=last, steps=3)
    assert (trainer.current_epoch, module.weight.item(), weight(last)) == (4, 12, 12)
    # A stop at the end of an iteration saves that iteration.
    fit.scripted([(0, 0)] * 9, [LastCheckpoint()], resume=last, steps=3, max_steps=15)
    assert weight(last) == 15


def test_half_an_iteration_is_better_than_no_file(fit: Any) -> None:
    fit.scripted([(0, 0)], [LastCheckpoint()], steps=3, max_steps=2)
    assert weight(fit.folder / "checkpoints/last.ckpt") == 2


def test_a_resume_that_is_refused_leaves_no_trace(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of other networks, in the folder of a finished run, with our own logger."""
    monkeypatch.setattr(Shipper, "start", lambda self: None)
    monkeypatch.setattr(Shipper, "close", lambda self, *seconds: 0)
    script = [(1.0, 0.0)] * 2

    def callbacks() -> list[L.Callback]:
        return [LastCheckpoint(), BestCheckpoint(), Exhibits(), Provenance()]

    fit.logger = MLflowJournalLogger(str(fit.folder))
    fit.scripted(script, callbacks(), epochs=1)
    last = fit.folder / "checkpoints/last.ckpt"
    wrong = SafeCheckpointIO().load_checkpoint(last)
    wrong["state_dict"]["weight"] = torch.zeros(3)
    SafeCheckpointIO().save_checkpoint(wrong, fit.folder / "other.ckpt")
    before = {path: path.read_bytes() for path in fit.folder.rglob("*") if path.is_file()}
    assert b'"FINISHED"' in before[fit.folder / "journal.jsonl"]
    fit.logger = MLflowJournalLogger(str(fit.folder))
    with pytest.raises(RuntimeError, match="size mismatch"):
        fit.scripted(script, callbacks(), resume=fit.folder / "other.ckpt")
    assert {path: path.read_bytes() for path in fit.folder.rglob("*") if path.is_file()} == before
    # An accepted resume continues the journal.
    fit.logger = MLflowJournalLogger(str(fit.folder))
    fit.scripted(script, callbacks(), resume=last)
    kinds = [record["kind"] for record, _ in read_records(fit.folder / "journal.jsonl")]
    assert kinds.count("start") == kinds.count("end") == 2


def test_a_rehearsal_leaves_no_files(fit: Any) -> None:
    fit.scripted([(1, 0)], [LastCheckpoint(), BestCheckpoint()], fast_dev_run=True)
    assert not fit.folder.exists()


def test_files_and_digests_are_logged_at_the_end(fit: Any) -> None:
    fit.scripted([(1, 0)], [LastCheckpoint(), BestCheckpoint()])
    for name in ("last", "best"):
        path = fit.folder / f"checkpoints/{name}.ckpt"
        assert fit.logger.tags[f"checkpoint/{name}_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path in fit.logger.artifacts


def test_files_are_logged_of_a_fit_that_failed(fit: Any, failing_at: Any) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        fit.scripted([(0, 0)] * 5, [LastCheckpoint(), failing_at(3)])
    assert fit.folder / "checkpoints/last.ckpt" in fit.logger.artifacts
    assert fit.logger.endings[0] == "failed"


class FailingValidation(L.Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("broken on purpose")


class Course(L.Callback):
    """Records the epochs of training batches and validations."""

    def __init__(self) -> None:
        self.trained: list[int] = []
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.trained.append(trainer.current_epoch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated.append(trainer.current_epoch)


@pytest.mark.parametrize("at, epochs", [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_a_validation_that_fails_takes_no_training_with_it(fit: Any, at: int, epochs: int) -> None:
    """With two steps per epoch. A resume repeats the validation but not the training, and ends like a straight run."""
    last, script = fit.folder / "checkpoints/last.ckpt", [(3.0, 0.0), (2.0, 0.0), (5.0, 0.0)]
    with pytest.raises(RuntimeError, match="on purpose"):
        fit.scripted(script, [LastCheckpoint(), BestCheckpoint(), FailingValidation(at)], epochs=epochs, steps=2)
    assert weight(last) == 2 * (at + 1)
    course = Course()
    callbacks = [course, LastCheckpoint(), BestCheckpoint()]
    trainer, _ = fit.scripted(script, callbacks, epochs=epochs, steps=2, resume=last)
    assert course.validated == list(range(at, epochs))
    assert course.trained == [epoch for epoch in range(at + 1, epochs) for _ in range(2)]
    assert (trainer.current_epoch, trainer.global_step, weight(last)) == (epochs, 2 * epochs, 2 * epochs)
    assert weight(fit.folder / "checkpoints/best.ckpt") == (2 if epochs == 1 else 6)


def test_what_fails_at_the_end_of_an_iteration_takes_no_training_with_it(fit: Any) -> None:
    class Failing(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fit.scripted([(0, 0)] * 3, [LastCheckpoint(), Failing()], steps=2, limit_val_batches=0)
    assert weight(fit.folder / "checkpoints/last.ckpt") == 2
    last = fit.folder / "checkpoints/last.ckpt"
    trainer, module = fit.scripted([(0, 0)] * 3, [LastCheckpoint()], steps=2, resume=last)
    assert (trainer.current_epoch, module.weight.item()) == (3, 6)


def test_without_any_metric_to_watch_a_fit_warns_and_goes_on(fit: Any) -> None:
    """A module of another library logs neither a return nor a loss."""

    class Silent(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return -self.weight

        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    rows: Any = DataLoader(torch.zeros(1, 1))  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="it logs nothing. No best.ckpt is saved"):
        fit.trainer(1, [LastCheckpoint(), BestCheckpoint()]).fit(Silent(), rows, rows)
    assert sorted(path.name for path in (fit.folder / "checkpoints").iterdir()) == ["last.ckpt"]
