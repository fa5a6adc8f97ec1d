"""The moment from which a fit leaves traces: once nothing can refuse it any more, before anything is spent."""

from __future__ import annotations

import lightning as L


class Beginning(L.Callback):
    """Calls `begin` once a fit, after every `on_train_start`, each of which may refuse the run.

    What writes to the run folder or the logger starts there, so that a refused run leaves no trace. A resume that goes
    on with a validation has no start of an epoch, and begins with that validation.
    """

    _began = False

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What a run leaves first."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._began = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_once(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._begin_once(trainer, pl_module)

    def _begin_once(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._began:
            self._began = True
            self.begin(trainer, pl_module)
