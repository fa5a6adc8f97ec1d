"""Check that a checkpoint has the required parts, with the right types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor

_RUN = {"pytorch-lightning_version": str, "epoch": int, "global_step": int, "state_dict": Mapping, "loops": Mapping}
_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
_TRAINING = {"optimizer_states": list, "lr_schedulers": list, "callbacks": Mapping}


def weights_of(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The `state_dict` of a checkpoint.

    Raises:
        ValueError: The checkpoint has no `state_dict`, or it is not a mapping of names to tensors.
    """
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} is not a checkpoint of a module: it has no state_dict")
    for name, x in state.items():
        if not isinstance(name, str) or not isinstance(x, Tensor):
            raise ValueError(f"{path}: state_dict: {name} must be a tensor, got {type(x).__name__}")
    return dict(state)


def arguments_of(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The arguments that the module of a checkpoint was built from, including its `_class_path`.

    Raises:
        ValueError: The arguments are missing because the module was not built from a yaml, or they are not a mapping of
            names to values.
    """
    arguments = checkpoint.get("hyper_parameters") or {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"{path}: hyper_parameters must be a mapping of names to values")
    class_path = arguments.get("_class_path")
    if class_path is None:
        raise ValueError(
            f"{path} does not contain the arguments of its module, which was not built from a yaml. Build the module "
            "in Python, then call module.load_state_dict(torch.load(path, weights_only=True)['state_dict'])"
        )
    if not isinstance(class_path, str):
        raise ValueError(f"{path}: hyper_parameters: _class_path must be a text, got {type(class_path).__name__}")
    return dict(arguments)


def check_run(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Check the parts that every stage needs.

    Raises:
        ValueError: A part is missing or has the wrong type.
    """
    weights_of(checkpoint, path)
    _check(checkpoint, _RUN, path)
    _check(checkpoint["loops"], dict.fromkeys(_LOOPS, Mapping), path, "loops.")


def check_training(checkpoint: Mapping[str, Any], data: Any) -> None:
    """Check the parts that a resumed fit needs.

    Args:
        data: The DataModule, or None. If the DataModule saves a state, the checkpoint must contain that state.

    Raises:
        ValueError: A part is missing or has the wrong type.
    """
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            "ckpt_path: the checkpoint has no optimizer state (optimizer_states is missing), like every best.ckpt. "
            "Resume with --ckpt_path last, or start a new run with this file as `weights` of the networks"
        )
    _check(checkpoint, _TRAINING, "ckpt_path")
    for name in ("optimizer_states", "lr_schedulers"):
        if not all(isinstance(state, Mapping) for state in checkpoint[name]):
            raise ValueError(f"ckpt_path: {name} is not a list of mappings; the checkpoint is damaged")
    name = type(data).__qualname__
    if data is None or type(data).state_dict is LightningDataModule.state_dict:
        return
    if name not in checkpoint:
        raise ValueError(
            f"ckpt_path: the checkpoint has no state of {name}, so its counters and random numbers would start again. "
            "To start from the weights alone, give the file as `weights` of the networks"
        )
    _check(checkpoint, {name: Mapping}, "ckpt_path")


def _check(content: Mapping[str, Any], types: Mapping[str, type], path: str | Path, above: str = "") -> None:
    for name, kind in types.items():
        if name not in content:
            raise ValueError(f"{path}: {above}{name} is missing; the file is damaged or not a checkpoint of a run")
        if not isinstance(content[name], kind):
            raise ValueError(f"{path}: {above}{name} is of type {type(content[name]).__name__}; the file is damaged")
