"""Preflight checks of data, context length, monitors, disk and memory, before the weights of a model are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_nlf.callbacks.monitors import refuse_unknown_monitor
from lightning_nlf.callbacks.protocols import Checking
from lightning_nlf.cli.parser import build
from lightning_nlf.construction import ConstructionFailed
from lightning_nlf.data_source import PartialSource, data_source
from lightning_nlf.language import hf_layout
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.networks import Network
from lightning_nlf.private_names import recorded_as

STAGES = {"fit": TrainerFn.FITTING, "validate": TrainerFn.VALIDATING, "test": TrainerFn.TESTING}
STAGES |= {"predict": TrainerFn.PREDICTING}
REFUSALS = (ValueError, ImportError, OSError, MemoryError)  # building the real model would raise these errors too


def look_ahead(trainer: L.Trainer, stage: str, data: L.LightningDataModule, model: Mapping[str, Any]) -> bool:
    """Run the initial checks of a stage on a module whose networks have no values yet.

    The stage repeats these checks. No files are written. Only models with weights in the Hugging Face layout are
    checked, and only with our DataModules, because their second `setup` does nothing.

    Args:
        model: Configuration of the module.

    Returns:
        Whether the checks were run.

    Raises:
        ValueError: A check refused the run.
    """
    trainer.state.fn = STAGES[stage]
    trainer.datamodule = data  # type: ignore[attr-defined]  # the stage sets this too
    data.trainer = trainer
    if is_overridden("prepare_data", data) or isinstance(data_source(trainer), PartialSource):
        return False
    module = sketch(model) if _reads_folders(model) else None
    if module is None:
        return False
    module.trainer = trainer
    trainer.strategy.connect(module)
    with torch.random.fork_rng(devices=[]):
        data.setup(stage)
        ObjectiveModule.setup(module, stage)  # the `setup` of a subclass may read weights
        if stage == "fit":
            for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning does not declare it
                if isinstance(callback, Checking):
                    callback.check_fit(trainer, module)
                elif isinstance(callback, EarlyStopping):
                    refuse_unknown_monitor("EarlyStopping", callback.monitor, trainer, module)
    return True


def _reads_folders(model: Mapping[str, Any]) -> bool:
    """Whether the model has at least one `weights` path, and all such paths are in the Hugging Face layout."""
    specs = [spec for spec in (model.get("init_args") or {}).values() if isinstance(spec, Mapping)]
    weights = [(spec.get("init_args") or {}).get("weights") for spec in specs]
    try:
        folders = [hf_layout.folder_of(path) for path in weights if isinstance(path, str)]
    except ValueError:  # an unknown path; the constructor of the network reports it with its key
        return True
    return bool(folders) and None not in folders


def sketch(model: Mapping[str, Any]) -> ObjectiveModule | None:
    """Build a module with networks that have shapes but no values (`Network.sketch`).

    Returns None if a class needs the values.

    Raises:
        ConstructionFailed: A constructor refused a value.
    """
    try:
        with recorded_as({}):  # records are only for checkpoints, and a sketch is never saved
            return build({"model": model}, {"model": ObjectiveModule}, {Network: _sketched})["model"]
    except ConstructionFailed as failed:
        if isinstance(failed.__cause__, REFUSALS):
            raise
        return None  # for example a user's class that reads its weights


def _sketched(network: type[Network], *, applied_instantiation_links: object, **arguments: Any) -> Network:
    """Instantiator for jsonargparse that builds a network by `Network.sketch`."""
    return network.sketch(**arguments)
