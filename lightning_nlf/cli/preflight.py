"""Checks that can refuse a run before the weights of its model are read: data, context, monitors, disk and memory."""

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
REFUSALS = (ValueError, ImportError, OSError, MemoryError)  # of a constructor: the model's own would raise them too


def look_ahead(trainer: L.Trainer, stage: str, data: L.LightningDataModule, model: Mapping[str, Any]) -> bool:
    """Set up the data and do the checks that a stage begins with, on a module whose networks have no numbers yet.

    The stage does the same again. Nothing is written. It is only for models whose weights are in Hugging Face layout,
    and for DataModules of ours, whose `setup` does nothing the second time.

    Args: model: the configuration of the module.
    Returns: whether it was done.

    Raises:
        ValueError: the run would be refused.
    """
    trainer.state.fn = STAGES[stage]
    trainer.datamodule = data  # type: ignore[attr-defined]  # as the stage does it
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
        ObjectiveModule.setup(module, stage)  # a child's own may want numbers
        if stage == "fit":
            for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set without being declared
                if isinstance(callback, Checking):
                    callback.check_fit(trainer, module)
                elif isinstance(callback, EarlyStopping):
                    refuse_unknown_monitor("EarlyStopping", callback.monitor, trainer, module)
    return True


def _reads_folders(model: Mapping[str, Any]) -> bool:
    """Whether all weights that networks start from are folders in Hugging Face layout, and there are any."""
    specs = [spec for spec in (model.get("init_args") or {}).values() if isinstance(spec, Mapping)]
    weights = [(spec.get("init_args") or {}).get("weights") for spec in specs]
    try:
        folders = [hf_layout.folder_of(path) for path in weights if isinstance(path, str)]
    except ValueError:  # of a name that nobody knows; the network says where it stands
        return True
    return bool(folders) and None not in folders


def sketch(model: Mapping[str, Any]) -> ObjectiveModule | None:
    """The module of a configuration, with networks of `Network.sketch`; None where a class needs more than that.

    Raises:
        ConstructionFailed: a constructor refused what it was given.
    """
    try:
        with recorded_as({}):  # it is never saved
            return build({"model": model}, {"model": ObjectiveModule}, {Network: _sketched})["model"]
    except ConstructionFailed as failed:
        if isinstance(failed.__cause__, REFUSALS):
            raise
        return None  # such as a class of the user's that looks at its numbers


def _sketched(network: type[Network], *, applied_instantiation_links: object, **arguments: Any) -> Network:
    """Instantiator of jsonargparse."""
    return network.sketch(**arguments)
