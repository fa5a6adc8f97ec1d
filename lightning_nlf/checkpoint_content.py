"""Parts of a checkpoint that must be there, and their types."""

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
    """Raises ValueError: there is no `state_dict`, or it holds more than tensors by name."""
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} is not the checkpoint of a module: it has no state_dict of tensors")
    for name, x in state.items():
        if not isinstance(name, str) or not isinstance(x, Tensor):
            raise ValueError(f"{path}: state_dict: {name} is no tensor, but a {type(x).__name__}")
    return dict(state)


def arguments_of(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The arguments that its module was built from, and `_class_path`.

    Raises:
        ValueError: they are not there, as no yaml built it; or they are no mapping by name.
    """
    arguments = checkpoint.get("hyper_parameters") or {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"{path}: hyper_parameters: not a mapping by name")
    class_path = arguments.get("_class_path")
    if class_path is None:
        raise ValueError(
            f"{path} does not say how its module is built, as no yaml built it. "
            "Build it, then module.load_state_dict(torch.load(path, weights_only=True)['state_dict'])"
        )
    if not isinstance(class_path, str):
        raise ValueError(f"{path}: hyper_parameters: _class_path is no name, but a {type(class_path).__name__}")
    return dict(arguments)


def check_run(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raises ValueError: a part that every stage of a run reads is missing, or of another type."""
    weights_of(checkpoint, path)
    _check(checkpoint, _RUN, path)
    _check(checkpoint["loops"], dict.fromkeys(_LOOPS, Mapping), path, "loops.")


def check_training(checkpoint: Mapping[str, Any], data: Any) -> None:
    """Raises ValueError: a part that training goes on from is missing, or of another type.

    Args: data: the data module, or None; its state must be there if it has any.
    """
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            "ckpt_path: optimizer_states is missing, as in a best.ckpt: go on with --ckpt_path last, or begin anew "
            "with the file as `weights` of the networks"
        )
    _check(checkpoint, _TRAINING, "ckpt_path")
    for name in ("optimizer_states", "lr_schedulers"):
        if not all(isinstance(state, Mapping) for state in checkpoint[name]):
            raise ValueError(f"ckpt_path: {name} is not a list of mappings: the checkpoint is damaged")
    name = type(data).__qualname__
    if data is None or type(data).state_dict is LightningDataModule.state_dict:
        return
    if name not in checkpoint:
        raise ValueError(
            f"ckpt_path: the checkpoint has no state of {name}, so its counters and random numbers would begin anew. "
            "To start from the weights alone, give them as `weights` of the networks"
        )
    _check(checkpoint, {name: Mapping}, "ckpt_path")


def _check(content: Mapping[str, Any], types: Mapping[str, type], path: str | Path, above: str = "") -> None:
    for name, kind in types.items():
        if name not in content:
            raise ValueError(f"{path}: {above}{name} is missing: it is damaged, or no checkpoint of a run")
        if not isinstance(content[name], kind):
            raise ValueError(f"{path}: {above}{name} is a {type(content[name]).__name__}: it is damaged")
