"""Build objects from `class_path` and `init_args`: parse a yaml, and rebuild a module from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningModule

from lightning_nlf.checkpoint_content import arguments_of, weights_of
from lightning_nlf.checkpoint_io import SafeCheckpointIO
from lightning_nlf.earlier_names import with_current_names
from lightning_nlf.networks.bases import Base, bases_in
from lightning_nlf.private_names import recorded_as
from lightning_nlf.protocols import refuse_incomplete
from lightning_nlf.trust import CheckpointParser, may_be_named, trusting

_TRAINING = ("optimizer", "lr_scheduler")  # arguments that only training needs
Module = TypeVar("Module", bound=LightningModule)

set_parsing_settings(
    # With "omegaconf+", `${seed_everything}` follows a second --config and flags. Otherwise it silently keeps its old
    # value.
    omegaconf_absolute_to_relative_paths=True,
    # A schedule is a dataclass with subclasses.
    subclasses_enabled=["is_pure_dataclass"],
)


class ConstructionFailed(BaseException):
    """A constructor raised an error, which is the `__cause__` of this exception.

    This is a BaseException because jsonargparse treats an Exception in a constructor as a sign that another type was
    meant, and would report a bug as a mistake in the yaml.
    """

    def __init__(self, class_type: type) -> None:
        super().__init__(class_type.__name__)
        self.class_name = class_type.__name__


def surfacing(instantiate: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Wrap an instantiator so that an error in a constructor is raised as ConstructionFailed.

    `instantiate` is an instantiator that resolves links between arguments. By default the class is called, as in
    jsonargparse.
    """

    def construct(class_type: type, *args: Any, **kwargs: Any) -> Any:
        try:
            refuse_incomplete(class_type, kwargs)
            return instantiate(class_type, *args, **kwargs) if instantiate else class_type(*args, **kwargs)
        except Exception as error:  # every error is re-raised, as a type that jsonargparse does not catch
            raise ConstructionFailed(class_type) from error

    def construct_linked(class_type: type, *args: Any, applied_instantiation_links: dict, **kwargs: Any) -> Any:
        return construct(class_type, *args, applied_instantiation_links=applied_instantiation_links, **kwargs)

    return construct_linked if instantiate else construct


def rebuild(
    base: type[Module],
    path: str | Path,
    map_location: Any = "cpu",
    strict: bool = True,
    trust: Sequence[str] | None = None,
    **changes: Any,
) -> Module:
    """Rebuild a module, with its networks and weights, from a checkpoint that the command line wrote.

    No code in the file runs. The file can only name classes of this project, torch's networks, and classes of the
    packages in `trust`. The classes must be subclasses of `base`, or of the types of its parameters. An optimizer from
    another package is left out. The module can then act, but raises an error if it is trained.

    Args:
        base: the class of the module, or one of its parent classes.
        strict: whether the names of the weights and the parameters must match one to one.
        trust: your own packages, such as ["mypkg"]; their code is run.
        changes: new values of top-level `init_args`.

    Raises:
        FileNotFoundError, ValueError: the checkpoint does not exist, is damaged or contains code; the module in the
            checkpoint is not a `base`, or was built manually, so that its arguments are not recorded; a class or
            parameter in the checkpoint does not exist (any more), is not a subclass, or is not trusted; a network
            cannot be built from its values; the weights do not fit.
    """
    checkpoint = SafeCheckpointIO().load_checkpoint(path, map_location)
    state, init_args = weights_of(checkpoint, path), with_current_names(arguments_of(checkpoint, path))
    class_path = init_args.pop("_class_path")
    init_args.pop("_instantiator", None)
    with _with_path(path):
        init_args = _on_bases(_without_sources(init_args, state), bases_in(checkpoint))
    hyper_parameters = {"_class_path": class_path} | init_args | changes
    with trusting(trust), _with_path(path):
        unused = {name: init_args.pop(name) for name in _TRAINING if not may_be_named(init_args.get(name))}
        parser = CheckpointParser(exit_on_error=False)
        parser.add_subclass_arguments(base, "module", fail_untyped=False, required=True)
        parser.add_instantiator(surfacing(), object)
        config = parser.parse_trusted({"module": {"class_path": class_path, "init_args": init_args | changes}})
        with recorded_as(hyper_parameters):  # the next checkpoint of this module records them
            module: Module = parser.build(config).module
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=strict)  # includes the base models of LoRA adapters
    if set(unused) - set(changes):
        module.optimizer = partial(_not_trained, path, unused)  # type: ignore[assignment]
    return module


@contextmanager
def _with_path(path: str | Path) -> Iterator[None]:
    """Replace an error from a damaged or foreign checkpoint by one line with the path.

    The original error is kept as the cause.
    """
    try:
        yield
    except OSError:
        raise
    except ConstructionFailed as failed:
        raise ValueError(f"{path}: {failed.class_name}: {_first_line(failed.__cause__)}") from failed.__cause__
    except Exception as error:  # any error is possible: the constructor's arguments come from the file
        raise ValueError(f"{path}: {_first_line(error)}") from error


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"its weights do not fit: {lines[1]}" if lines[0].startswith("Error(s) in loading state_dict") else lines[0]


def _not_trained(path: str | Path, unused: Mapping[str, Any], *parameters: Any) -> NoReturn:
    paths = {name: spec.get("class_path") if isinstance(spec, Mapping) else spec for name, spec in unused.items()}
    names = ", ".join(f"{name} {path}" for name, path in paths.items())
    raise ValueError(f"{path} needs {names}, from a package that is not trusted; add the package to `trust` to train")


def _without_sources(init_args: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Remove `weights` from networks whose weights are in the checkpoint, so that the file in `weights` is not read."""
    cleared = dict(init_args)
    for name, spec in init_args.items():
        arguments = spec.get("init_args") if isinstance(spec, dict) else None
        if arguments and arguments.get("weights") and any(key.startswith(f"{name}.") for key in state):
            cleared[name] = spec | {"init_args": arguments | {"weights": None}}
    return cleared


def _on_bases(init_args: Mapping[str, Any], bases: Mapping[str, Base]) -> dict[str, Any]:
    """Set `weights` of networks with LoRA to their base model.

    Raises ValueError: a base model is missing or has changed.
    """
    begun = dict(init_args)
    for name, base in bases.items():
        if isinstance(spec := begun.get(name), dict):
            weights = str(base.locate()) if base.folder else base.weights
            begun[name] = spec | {"init_args": spec.get("init_args", {}) | {"weights": weights}}
    return begun
