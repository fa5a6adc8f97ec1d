"""Wrappers of private names of jsonargparse, Lightning and typing. No other file uses such names.

A new version of a library may remove such a name. `tests/lightning_nlf/test_private_names.py` then reports which name
is missing, and what the name was used for. Replace a name as soon as the library has a public one for the same purpose.
"""

from __future__ import annotations

import traceback
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from jsonargparse._common import parser_context, parsing_settings
from jsonargparse._loaders_dumpers import get_yaml_default_loader
from jsonargparse._typehints import ActionTypeHint
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, _InstantiatorFn
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

RESTORING_MODULE = "lightning.pytorch.trainer.connectors.checkpoint_connector"
RESTORING_FUNCTIONS = ("restore", "_restore", "resume_start")  # the first letters of their names


def is_protocol(kind: type) -> bool:
    """Whether a class is a Protocol, like `typing.is_protocol` of Python 3.13."""
    return getattr(kind, "_is_protocol", False)


# ---- jsonargparse: parsers


class CheckedParser(LightningArgumentParser):
    """Parser of a configuration whose subclasses can inspect each value before jsonargparse checks it."""

    def check_value(self, action: Action, value: Any, check: Callable[[Any], Any]) -> Any:
        """The value to store in the configuration. `check` is the check of jsonargparse."""
        return check(value)

    def _check_value_key(self, action: Action, value: Any, *args: Any, **kwargs: Any) -> Any:
        check = super()._check_value_key
        return self.check_value(action, value, lambda checked: check(action, checked, *args, **kwargs))


def arguments_of(parser: ArgumentParser) -> list[Action]:
    """All arguments of a parser, in the order in which they were added."""
    return parser._actions


def type_of(action: Action) -> Any:
    """The type hint of an argument; None if the argument accepts any value."""
    return getattr(action, "_typehint", None)


def set_type(action: Action, kind: Any) -> None:
    """Replace the type hint of an argument."""
    action._typehint = kind  # type: ignore[attr-defined]


def wants_class(kind: Any) -> bool:
    """Whether a yaml gives values of a type by `class_path`: objects, lists of them, or callables that return one."""
    return ActionTypeHint.is_subclass_typehint(
        kind, all_subtypes=False, also_lists=True
    ) or ActionTypeHint.is_return_subclass_typehint(kind)


def lenient(on: bool) -> AbstractContextManager[None]:
    """Context manager in which jsonargparse accepts null and unresolved `${…}` for any type (`on`), or checks them."""
    return parser_context(lenient_check=on)


def yaml_resolvers() -> Mapping[str, list[tuple[str, Any]]]:
    """Tags and patterns of unquoted yaml scalars, by first letter. The lists may be changed in place."""
    return get_yaml_default_loader().yaml_implicit_resolvers


@contextmanager
def imports_only(roots: Sequence[str]) -> Iterator[None]:
    """Context manager in which configurations can only import packages in `roots`, in all threads of the process.

    The public `set_parsing_settings` has the same policy but cannot be undone, and the user's own yamls may import
    anything.
    """
    changed = ("import_path_verdicts", "import_paths_enforced", "instantiate_subclass_spec_in_any")
    before = {name: parsing_settings[name] for name in changed}
    verdicts = before["import_path_verdicts"] | {"*": False} | dict.fromkeys(roots, True)
    parsing_settings.update(zip(changed, (verdicts, True, False), strict=True))
    try:
        yield
    finally:
        parsing_settings.update(before)


# ---- Lightning: modules and checkpoints


class SeededCLI(LightningCLI):
    """LightningCLI whose subclasses can set the seed themselves, because Lightning's method prints a line."""

    def set_seed(self) -> None:
        """Set the seed. Called after the arguments are parsed and before any object is built."""

    def _set_seed(self) -> None:
        self.set_seed()


def trainer_of(module: LightningModule) -> Trainer | None:
    """The Trainer of a module, or None. (`module.trainer` raises an error if there is none.)"""
    try:
        return module.trainer
    except RuntimeError:
        return None


def recorded_as(arguments: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Context manager in which a new module records `arguments` as its hyperparameters, not the objects it receives."""
    return _given_hyperparameters_context(dict(arguments), "lightning.pytorch.cli.instantiate_module")


def recorded_by(cli: LightningCLI, key: str) -> Callable[..., Any]:
    """An instantiator whose module records the configuration below `key` as its hyperparameters."""
    return _InstantiatorFn(cli=cli, key=key)


def nothing_to_save(callback: ModelCheckpoint, trainer: Trainer) -> bool:
    """Whether to skip saving: in a fast_dev_run, a sanity check, outside a fit, or if this step was already saved."""
    return callback._should_skip_saving_checkpoint(trainer)


def save_checkpoint(callback: ModelCheckpoint, trainer: Trainer, path: str) -> None:
    """Save a checkpoint, notify the loggers, and mark the optimizer step as saved by the callback."""
    callback._save_checkpoint(trainer, path)


def restores_checkpoint(error: BaseException) -> bool:
    """Whether an error was raised while the Trainer restored a checkpoint."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_code.co_name for frame in frames if frame.f_globals.get("__name__") == RESTORING_MODULE]
    return any(name.startswith(RESTORING_FUNCTIONS) for name in names)


# ---- Lightning: several processes


class RankLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher of the other ranks. It is split into methods, so that a subclass can change their order."""

    def start_ranks(self) -> None:
        """Start the processes of ranks 1, 2, … and store them in `procs`."""
        self._call_children_scripts()

    def share_threads(self) -> None:
        """Divide the CPU cores among the ranks, unless OMP_NUM_THREADS is set."""
        _set_num_threads_if_needed(num_processes=self.num_processes)


def rank_launcher(trainer: Trainer) -> _SubprocessScriptLauncher | None:
    """The launcher of a Trainer that starts the other ranks as subprocesses; None for any other Trainer."""
    launcher = trainer.strategy.launcher
    return launcher if isinstance(launcher, _SubprocessScriptLauncher) else None


def set_launcher(trainer: Trainer, launcher: RankLauncher) -> None:
    """Replace the launcher of a Trainer."""
    trainer.strategy._launcher = launcher


def saves_shards(strategy: ModelParallelStrategy) -> bool:
    """Whether a strategy saves a folder with a file for each rank, not a single file."""
    return strategy._save_distributed_checkpoint


def on_sigterm(trainer: Trainer, callback: Callable[..., None]) -> None:
    """Replace Lightning's SIGTERM handler with `callback(signal number, frame)`. Call this before the stage begins."""
    trainer._signal_connector._sigterm_notifier_fn = callback  # type: ignore[method-assign]


def stop_as_terminated(trainer: Trainer) -> None:
    """Make a fit stop as it would after SIGTERM, the next time that Lightning checks for this signal."""
    trainer._signal_connector.received_sigterm = True
