"""Check free disk space before a fit trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning as L
from torch import nn

from lightning_nlf.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from lightning_nlf.callbacks.export import Exportable, HuggingFaceExport
from lightning_nlf.callbacks.protocols import rehearses, run_folder
from lightning_nlf.networks import Network

MOMENTS = 2  # numbers that an optimizer such as Adam keeps per trainable parameter


class DiskSpace(L.Callback):
    """Refuses a fit whose checkpoints and export would not fit on the disk of the run folder.

    The size is estimated from the parameters, with two optimizer moments per trainable parameter. The state of the
    DataModule and the exhibits are not counted.

    Raises:
        ValueError: The disk has too little free space.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check_fit(trainer, pl_module)

    def check_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare free disk space with the estimated size.

        Raises:
            ValueError: The disk has too little free space.
        """
        if rehearses(trainer):
            return
        folder = run_folder(trainer)
        checkpoints, export = checkpoint_bytes(trainer, pl_module), export_bytes(trainer, pl_module)
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        free = trainer.strategy.broadcast(free)  # only rank 0 writes
        if free < checkpoints + export:
            raise ValueError(
                f"run_dir: not enough disk space: {gigabytes(free)} are free in {folder}, and this fit needs about "
                f"{gigabytes(checkpoints + export)} ({gigabytes(checkpoints)} for checkpoints, {gigabytes(export)} for "
                "the export). Free some space, or set --run_dir to a folder on another disk"
            )


def checkpoint_bytes(trainer: L.Trainer, module: nn.Module) -> int:
    """Bytes that the checkpoints will add.

    While a checkpoint is being replaced, the old and the new file exist together.
    """
    state = sum(x.nbytes for x in module.state_dict().values())
    for network in module.modules():
        if isinstance(network, Network):
            state -= sum(x.nbytes for x in network.base_weights().values())
    moments = MOMENTS * sum(x.nbytes for x in module.parameters() if x.requires_grad)
    sizes: dict[Path, int] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning does not declare it
        if isinstance(callback, LastCheckpoint | BestCheckpoint):
            keeps = isinstance(callback, LastCheckpoint) or callback.optimizer
            sizes[callback.path_in(run_folder(trainer))] = state + moments * keeps
    present = {path: path.stat().st_size if path.exists() else 0 for path in sizes}
    return sum(max(size - present[path], 0) for path, size in sizes.items()) + max(sizes.values(), default=0)


def export_bytes(trainer: L.Trainer, module: nn.Module) -> int:
    """Bytes of the Hugging Face export; 0 if the fit has none."""
    policy = getattr(module, "policy", None)
    exports = [callback for callback in trainer.callbacks if isinstance(callback, HuggingFaceExport)]  # type: ignore[attr-defined]
    if not exports or not isinstance(policy, Exportable):
        return 0
    return exports[0].estimate(policy)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
