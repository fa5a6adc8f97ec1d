"""Objects from `class_path` and `init_args`: how the yaml is read, and a module rebuilt from its checkpoint alone."""

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


def surfacing(instantiate: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The instantiator, which wants links, with what a constructor raises brought to the surface.

    Without one: what jsonargparse does, which is to call the class.
    """

    def construct(class_type: type, *args: Any, **kwargs: Any) -> Any:
        try:
            refuse_incomplete(class_type, kwargs)
            return instantiate(class_type, *args, **kwargs) if instantiate else class_type(*args, **kwargs)
        except Exception as error:  # all of them: it is re-raised, under a name that gets through
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
    """The module of a checkpoint that a run of the command line has written, with its networks and weights.

    Nothing in the file is run, and nothing is imported that it names, but classes of this project, torch's networks,
    and those of the packages that `trust` names. They must be subclasses of `base`, and of what its parameters ask for.
    An optimizer of another package is left out: the module acts, and says so when it is to be trained.

    Args:
        base: the class or one above it.
        strict: whether every weight must have its place, and every place its weight.
        trust: packages of your own, such as ["mypkg"]: their code is run.
        changes: of init_args, at the top level.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or it is damaged or holds code; or it is of a module
            built by hand, and does not say how, or of one that is no `base`; a class or parameter it names does not
            exist (any more), is no subclass, or not trusted; a network cannot be built of its values; the weights do
            not fit.
    """
    checkpoint = SafeCheckpointIO().load_checkpoint(path, map_location)
    state, init_args = weights_of(checkpoint, path), with_current_names(arguments_of(checkpoint, path))
    class_path = init_args.pop("_class_path")
    init_args.pop("_instantiator", None)
    with _named(path):
        init_args = _on_bases(_without_sources(init_args, state), bases_in(checkpoint))
    saved = {"_class_path": class_path} | init_args | changes
    with trusting(trust), _named(path):
        unused = {name: init_args.pop(name) for name in _TRAINING if not may_be_named(init_args.get(name))}
        parser = CheckpointParser(exit_on_error=False)
        parser.add_subclass_arguments(base, "module", fail_untyped=False, required=True)
        parser.add_instantiator(surfacing(), object)
        config = parser.parse_trusted({"module": {"class_path": class_path, "init_args": init_args | changes}})
        with recorded_as(saved):  # for its next checkpoint
            module: Module = parser.build(config).module
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=strict)  # with the bases that it names
    if set(unused) - set(changes):
        module.optimizer = partial(_not_trained, path, unused)  # type: ignore[assignment]
    return module


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """What a damaged or foreign checkpoint makes break is said in one line with its name; the cause goes along."""
    try:
        yield
    except OSError:
        raise
    except ConstructionFailed as failed:
        raise ValueError(f"{path}: {failed.class_name}: {_first_line(failed.__cause__)}") from failed.__cause__
    except Exception as error:  # all of them: the values that a constructor was given are the file's
        raise ValueError(f"{path}: {_first_line(error)}") from error


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"its weights do not fit: {lines[1]}" if lines[0].startswith("Error(s) in loading state_dict") else lines[0]


def _not_trained(path: str | Path, unused: Mapping[str, Any], *parameters: Any) -> NoReturn:
    paths = {name: spec.get("class_path") if isinstance(spec, Mapping) else spec for name, spec in unused.items()}
    names = ", ".join(f"{name} {path}" for name, path in paths.items())
    raise ValueError(f"{path} names the {names}, of a package that was not trusted: load it with `trust` to train on")


def _without_sources(init_args: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Networks that are in the checkpoint do not read again the file they once started from."""
    cleared = dict(init_args)
    for name, spec in init_args.items():
        arguments = spec.get("init_args") if isinstance(spec, dict) else None
        if arguments and arguments.get("weights") and any(key.startswith(f"{name}.") for key in state):
            cleared[name] = spec | {"init_args": arguments | {"weights": None}}
    return cleared


def _on_bases(init_args: Mapping[str, Any], bases: Mapping[str, Base]) -> dict[str, Any]:
    """Networks with LoRA begin with the bases of their additions. Raises ValueError: one is not there, or another."""
    begun = dict(init_args)
    for name, base in bases.items():
        if isinstance(spec := begun.get(name), dict):
            weights = str(base.locate()) if base.folder else base.weights
            begun[name] = spec | {"init_args": spec.get("init_args", {}) | {"weights": weights}}
    return begun
