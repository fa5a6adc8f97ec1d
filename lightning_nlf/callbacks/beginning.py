"""Base class of callbacks that write files after a fit has passed all its checks and before it trains."""

from __future__ import annotations

import lightning as L


class Beginning(L.Callback):
    """Calls `begin` once per fit, after the `on_train_start` of all callbacks, because any of these may refuse the run.

    Callbacks write to the run folder or the logger only from `begin` on, so that a refused run leaves no files. If a
    resumed fit continues with a validation, no epoch starts. `begin` is then called before that validation.
    """

    _began = False

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the first files of a run."""

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
