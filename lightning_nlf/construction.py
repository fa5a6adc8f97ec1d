"""Objects from `class_path` and `init_args`: how the yaml is read, and a module rebuilt from its checkpoint alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context

from lightning_nlf.checkpoint_io import SafeCheckpointIO

Module = TypeVar("Module", bound=LightningModule)

set_parsing_settings(
    # With "omegaconf+" this makes `${seed_everything}` follow a second --config and flags; else it is silently stale.
    omegaconf_absolute_to_relative_paths=True,
    # A schedule is a dataclass, and has subclasses.
    subclasses_enabled=["is_pure_dataclass"],
)


class ConstructionFailed(BaseException):
    """A constructor raised; the error is the cause.

    A BaseException, as jsonargparse takes every Exception of a constructor for a sign that another type was meant, and
    reports a bug as a mistake in the yaml.
    """

    def __init__(self, class_type: type) -> None:
        super().__init__(class_type.__name__)
        self.class_name = class_type.__name__


def surfacing(instantiate: Callable[..., Any], links: bool = False) -> Callable[..., Any]:
    """The instantiator, with what a constructor raises brought to the surface; `links` if it wants links."""

    def construct(class_type: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return instantiate(class_type, *args, **kwargs)
        except Exception as error:  # all of them: it is re-raised, under a name that gets through
            raise ConstructionFailed(class_type) from error

    def construct_linked(class_type: type, *args: Any, applied_instantiation_links: dict, **kwargs: Any) -> Any:
        return construct(class_type, *args, applied_instantiation_links=applied_instantiation_links, **kwargs)

    return construct_linked if links else construct


def plain(class_type: type, *args: Any, **kwargs: Any) -> Any:
    """What jsonargparse does without an instantiator."""
    return class_type(*args, **kwargs)


def rebuild(
    base: type[Module], path: str | Path, map_location: Any = "cpu", strict: bool = True, **changes: Any
) -> Module:
    """The module of a checkpoint that a run of the command line has written, with its networks and weights.

    Nothing in the file is run, but the classes it names are imported; they must be subclasses of `base`, and of what
    its parameters ask for.

    Args:
        base: the class or one above it.
        strict: whether every weight must have its place, and every place its weight.
        changes: of init_args, at the top level.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or it is damaged or holds code; or it is of a module
            built by hand, and does not say how, or of one that is no `base`.
        argparse.ArgumentError: a class or parameter it names does not exist (any more), or is no subclass.
        RuntimeError: the weights do not fit.
    """
    checkpoint = SafeCheckpointIO().load_checkpoint(path, map_location)
    init_args = dict(checkpoint.get(base.CHECKPOINT_HYPER_PARAMS_KEY) or {})
    class_path = init_args.pop("_class_path", None)
    init_args.pop("_instantiator", None)
    if class_path is None:
        raise ValueError(
            f"{path} does not say how its module is built, as no yaml built it. "
            "Build it, then module.load_state_dict(torch.load(path, weights_only=True)['state_dict'])"
        )
    module_name, _, name = class_path.rpartition(".")
    kind = getattr(importlib.import_module(module_name), name, base)  # what is not there, the parser tells
    if not issubclass(kind, base):
        raise ValueError(f"{path} is of {name}, which is no {base.__name__}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "module", fail_untyped=False, required=True)
    init_args = _without_sources(init_args, checkpoint["state_dict"]) | changes
    config = parser.parse_object({"module": {"class_path": class_path, "init_args": init_args}})
    saved = {"_class_path": class_path} | init_args
    with _given_hyperparameters_context(saved, "lightning.pytorch.cli.instantiate_module"):  # for its next checkpoint
        module: Module = parser.instantiate_classes(config).module
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=strict)
    return module


def _without_sources(init_args: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Networks that are in the checkpoint do not read again the file they once started from."""
    cleared = dict(init_args)
    for name, spec in init_args.items():
        arguments = spec.get("init_args") if isinstance(spec, dict) else None
        if arguments and arguments.get("weights") and any(key.startswith(f"{name}.") for key in state):
            cleared[name] = spec | {"init_args": arguments | {"weights": None}}
    return cleared
