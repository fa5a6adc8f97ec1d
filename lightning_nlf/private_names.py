"""Private names of jsonargparse, Lightning and typing: the one file that uses them, under public names of ours.

No library promises to keep them. `tests/lightning_nlf/test_private_names.py` says which name an upgrade took away,
and what it was used for. A name belongs here only while the library has no public one that does the same.
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
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

RESTORING_MODULE = "lightning.pytorch.trainer.connectors.checkpoint_connector"
RESTORING_FUNCTIONS = ("restore", "_restore", "resume_start")  # the first letters of their names


def is_protocol(kind: type) -> bool:
    """`typing.is_protocol` of Python 3.13."""
    return getattr(kind, "_is_protocol", False)


# ---- jsonargparse: parsers


class CheckedParser(LightningArgumentParser):
    """Parser of a configuration whose subclasses may look at each value before jsonargparse checks it."""

    def check_value(self, action: Action, value: Any, check: Callable[[Any], Any]) -> Any:
        """The value as the configuration keeps it; `check` is jsonargparse's own answer to a value."""
        return check(value)

    def _check_value_key(self, action: Action, value: Any, *args: Any, **kwargs: Any) -> Any:
        check = super()._check_value_key
        return self.check_value(action, value, lambda checked: check(action, checked, *args, **kwargs))


def arguments_of(parser: ArgumentParser) -> list[Action]:
    """Every argument of a parser, in the order in which they were added."""
    return parser._actions


def type_of(action: Action) -> Any:
    """The type hint of an argument; None where it takes everything."""
    return getattr(action, "_typehint", None)


def set_type(action: Action, kind: Any) -> None:
    action._typehint = kind  # type: ignore[attr-defined]


def wants_class(kind: Any) -> bool:
    """Whether values of a type are written with `class_path`: a class, a list of them, or what returns one."""
    return ActionTypeHint.is_subclass_typehint(
        kind, all_subtypes=False, also_lists=True
    ) or ActionTypeHint.is_return_subclass_typehint(kind)


def lenient(on: bool) -> AbstractContextManager[None]:
    """Inside, jsonargparse checks a value in part only (`on`), or in full: a null too, and what `${…}` means."""
    return parser_context(lenient_check=on)


def yaml_resolvers() -> Mapping[str, list[tuple[str, Any]]]:
    """By first letter, the tags of unquoted yaml scalars with their patterns; the lists may be changed in place."""
    return get_yaml_default_loader().yaml_implicit_resolvers


@contextmanager
def imports_only(roots: Sequence[str]) -> Iterator[None]:
    """Inside, a value of a configuration imports nothing but below `roots`, in all threads of the process.

    `set_parsing_settings` has the same policy, but sets it for good, and a yaml of the user's is under none.
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
    """LightningCLI whose subclasses may seed in another way: its own prints a line."""

    def set_seed(self) -> None:
        """Called once the arguments are parsed, before anything is built."""

    def _set_seed(self) -> None:
        self.set_seed()


def trainer_of(module: LightningModule) -> Trainer | None:
    """The Trainer that a module is attached to, or None: `module.trainer` raises where there is none."""
    try:
        return module.trainer
    except RuntimeError:
        return None


def recorded_as(arguments: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Inside, a module that is built keeps `arguments` as its hyperparameters, not the objects that it is given."""
    return _given_hyperparameters_context(dict(arguments), "lightning.pytorch.cli.instantiate_module")


def recorded_by(cli: LightningCLI, key: str) -> Callable[..., Any]:
    """An instantiator whose module keeps what stands below `key` of the configuration as its hyperparameters."""
    return _InstantiatorFn(cli=cli, key=key)


def nothing_to_save(callback: ModelCheckpoint, trainer: Trainer) -> bool:
    """Whether this is a rehearsal, a sanity check or no fit, or the callback has saved this optimizer step already."""
    return callback._should_skip_saving_checkpoint(trainer)


def save_checkpoint(callback: ModelCheckpoint, trainer: Trainer, path: str) -> None:
    """Save in the callback's name: the loggers hear of it, and the optimizer step counts as saved."""
    callback._save_checkpoint(trainer, path)


def restores_checkpoint(error: BaseException) -> bool:
    """Whether an error was raised while the Trainer took over the parts of a checkpoint."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_code.co_name for frame in frames if frame.f_globals.get("__name__") == RESTORING_MODULE]
    return any(name.startswith(RESTORING_FUNCTIONS) for name in names)


# ---- Lightning: several processes


class RankLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks as `_SubprocessScriptLauncher.launch` does, in steps that a subclass can rearrange."""

    def start_ranks(self) -> None:
        """Start the processes of ranks 1, 2, …; they are in `procs` afterwards."""
        self._call_children_scripts()

    def share_threads(self) -> None:
        """Leave each rank its share of the CPU cores, where OMP_NUM_THREADS is not set."""
        _set_num_threads_if_needed(num_processes=self.num_processes)


def rank_launcher(trainer: Trainer) -> _SubprocessScriptLauncher | None:
    """The launcher of a Trainer that starts its other ranks itself, as processes with the same command."""
    launcher = trainer.strategy.launcher
    return launcher if isinstance(launcher, _SubprocessScriptLauncher) else None


def set_launcher(trainer: Trainer, launcher: RankLauncher) -> None:
    trainer.strategy._launcher = launcher


def on_sigterm(trainer: Trainer, handler: Callable[..., None]) -> None:
    """Call `handler(signal number, frame)` at a SIGTERM in the place of Lightning's own; before the stage begins."""
    trainer._signal_connector._sigterm_notifier_fn = handler  # type: ignore[method-assign]


def stop_as_terminated(trainer: Trainer) -> None:
    """Have a fit end as after a SIGTERM, where Lightning next looks at it."""
    trainer._signal_connector.received_sigterm = True
