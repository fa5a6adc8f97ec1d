"""Room on the disk for what a fit leaves, looked for before it trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning as L
from torch import nn

from lightning_nlf.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from lightning_nlf.callbacks.export import Exportable, HuggingFaceExport
from lightning_nlf.callbacks.protocols import rehearses, run_folder
from lightning_nlf.networks import Network

MOMENTS = 2  # numbers that an optimizer such as Adam keeps of each parameter that trains


class DiskSpace(L.Callback):
    """Refuses a fit whose checkpoints and export would not fit on the disk of the run folder.

    Estimated by the parameters, with an optimizer that keeps two numbers of each that trains; not counted are the state
    of the data and what is exhibited.

    Raises:
        ValueError: there is less room.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check_fit(trainer, pl_module)

    def check_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises ValueError: as above."""
        if rehearses(trainer):
            return
        folder = run_folder(trainer)
        checkpoints, export = checkpoint_bytes(trainer, pl_module), export_bytes(trainer, pl_module)
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        free = trainer.strategy.broadcast(free)  # the folder is rank 0's
        if free < checkpoints + export:
            raise ValueError(
                f"run_dir: {gigabytes(free)} are free below {folder}, and this fit writes about "
                f"{gigabytes(checkpoints + export)} there ({gigabytes(checkpoints)} of checkpoints, "
                f"{gigabytes(export)} of export): make room, or give a --run_dir on another disk"
            )


def checkpoint_bytes(trainer: L.Trainer, module: nn.Module) -> int:
    """What the checkpoints take more than now; one of them is written beside the file that it replaces."""
    state = sum(x.nbytes for x in module.state_dict().values())
    for network in module.modules():
        if isinstance(network, Network):
            state -= sum(x.nbytes for x in network.base_weights().values())
    moments = MOMENTS * sum(x.nbytes for x in module.parameters() if x.requires_grad)
    sizes: dict[Path, int] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set without being declared
        if isinstance(callback, LastCheckpoint | BestCheckpoint):
            keeps = isinstance(callback, LastCheckpoint) or callback.optimizer
            sizes[callback.path_in(run_folder(trainer))] = state + moments * keeps
    present = {path: path.stat().st_size if path.exists() else 0 for path in sizes}
    return sum(max(size - present[path], 0) for path, size in sizes.items()) + max(sizes.values(), default=0)


def export_bytes(trainer: L.Trainer, module: nn.Module) -> int:
    policy = getattr(module, "policy", None)
    exports = [each for each in trainer.callbacks if isinstance(each, HuggingFaceExport)]  # type: ignore[attr-defined]
    if not exports or not isinstance(policy, Exportable):
        return 0
    return exports[0].estimate(policy)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
