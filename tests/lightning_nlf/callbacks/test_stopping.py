from __future__ import annotations

import logging
from typing import Any

import pytest

from lightning_nlf.callbacks import LastCheckpoint, StopWhenSolved


def returns(*values: float) -> list[tuple[float, float]]:
    return [(value, 0.0) for value in values]


def test_stops_after_so_many_in_a_row(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    """950 counts, and 949 breaks the row. The second 950 in a row comes in epoch 5."""
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        logging.getLogger("lightning.pytorch").addHandler(caplog.handler)
        trainer, _ = fit.scripted(returns(1000, 949, 0, 950, 951, 1000, 1000), [StopWhenSolved(times=2)])
    assert trainer.current_epoch == 5
    messages = [record.message for record in caplog.records if "Solved" in record.message]
    assert set(messages) == {"Solved: val/return reached 950 in 2 validations in a row. The fit stops here."}


def test_never_stops_below_the_threshold(fit: Any) -> None:
    trainer, _ = fit.scripted(returns(949, 949, 949), [StopWhenSolved(times=1)])
    assert trainer.current_epoch == 3


def test_the_row_goes_on_in_a_resumed_run(fit: Any) -> None:
    """Two of three validations are before the interruption, so the first one after it is the third."""
    fit.scripted(returns(950, 950), [StopWhenSolved(), LastCheckpoint()])
    resume = fit.folder / "checkpoints/last.ckpt"
    trainer, _ = fit.scripted(returns(950, 950, 950, 0, 0), [StopWhenSolved(), LastCheckpoint()], resume=resume)
    assert trainer.current_epoch == 3
    # A run that had stopped stops at once; with another threshold it continues.
    trainer, _ = fit.scripted(returns(0, 0, 0, 0, 0), [StopWhenSolved(), LastCheckpoint()], resume=resume)
    assert trainer.current_epoch == 3
    trainer, _ = fit.scripted(returns(0, 0, 0, 0, 0), [StopWhenSolved(960), LastCheckpoint()], resume=resume)
    assert trainer.current_epoch == 5


def test_mistakes_are_named(fit: Any) -> None:
    with pytest.raises(ValueError, match="times: got 0"):
        StopWhenSolved(times=0)
    with pytest.raises(ValueError, match="val/score"):
        fit.scripted(returns(1), [StopWhenSolved(monitor="val/score")])
