"""Fixtures: a fit of the pendulum, a fit with scripted validation metrics, and a logger that keeps everything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.pendulum import PendulumDataModule
from lightning_nlf.checkpoint_io import SafeCheckpointIO
from lightning_nlf.networks import GaussianPolicy
from lightning_nlf.objectives import ReinforcePolicy


class Memory(Logger):
    """A logger that keeps metrics, tags, artifacts and statuses in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.tags: dict[str, str] = {}
        self.artifacts: list[Path] = []
        self.endings: list[str] = []

    name = version = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_artifact(self, path: str | Path) -> None:
        self.artifacts.append(Path(path))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self.tags.update(tags)

    def finalize(self, status: str) -> None:
        self.endings.append(status)


class Scripted(L.LightningModule):
    """A module whose validation of epoch i logs `script[i]`: (return, return_sampled). One optimizer step per batch."""

    def __init__(self, script: list[tuple[float, float]]) -> None:
        super().__init__()
        self.script = script
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.weight  # so that after n steps of SGD(lr=1) the weight is n

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        deterministic, sampled = self.script[self.current_epoch]
        self.log_dict({"val/return": deterministic, "val/return_sampled": sampled}, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Fit:
    """Runs any number of fits in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.logger = folder, Memory()

    def trainer(self, epochs: int, callbacks: list[L.Callback], every: int = 1, **options: Any) -> L.Trainer:
        names = [type(callback).__name__ for callback in callbacks]
        settings = {
            "default_root_dir": self.folder,
            "logger": self.logger,
            "callbacks": callbacks,
            "max_epochs": epochs,
            "check_val_every_n_epoch": every,
            "plugins": [SafeCheckpointIO()],
            "enable_checkpointing": any("Checkpoint" in name for name in names),
            "enable_progress_bar": "FitProgress" in names,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "devices": 1,
        }
        return L.Trainer(**(settings | options))

    def pendulum(
        self, epochs: int, callbacks: list[L.Callback], resume: Path | None = None, **options: Any
    ) -> tuple[L.Trainer, ReinforcePolicy, PendulumDataModule]:
        torch.manual_seed(0)
        module = ReinforcePolicy(policy=GaussianPolicy(4, 1), optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
        data_module = PendulumDataModule(episodes=2, horizon=20, evaluation_episodes=2, threads=1)
        trainer = self.trainer(epochs, callbacks, **options)
        trainer.fit(module, data_module, ckpt_path=resume)
        return trainer, module, data_module

    def scripted(
        self,
        script: list[tuple[float, float]],
        callbacks: list[L.Callback],
        epochs: int | None = None,
        resume: Path | None = None,
        steps: int = 1,
        **options: Any,
    ) -> tuple[L.Trainer, Scripted]:
        module = Scripted(script)
        trainer = self.trainer(epochs or len(script), callbacks, **options)
        train, validate = (DataLoader(torch.zeros(n, 1)) for n in (steps, 1))  # type: ignore[arg-type, var-annotated]
        trainer.fit(module, train, validate, ckpt_path=resume)
        return trainer, module


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    return Fit(tmp_path / "run")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)
    torch.set_num_threads(threads)


@pytest.fixture
def failing_at() -> Callable[[int], L.Callback]:
    class Failing(L.Callback):
        def __init__(self, epoch: int) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.current_epoch == self.epoch:
                raise RuntimeError("broken on purpose")

    return Failing
