"""Turn errors that a user can fix into one-line messages. Any other error is a bug, and keeps its traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_nlf.batch import TeacherStopped
from lightning_nlf.cli.errors import OUT_OF_MEMORY, ConfigurationError, RunFailure, memory_is_short, raised_by_us
from lightning_nlf.cli.messages import translate_construction
from lightning_nlf.cli.run_folder import describe_last_checkpoint
from lightning_nlf.cli.valid_names import import_hint
from lightning_nlf.cli.yaml_places import Place
from lightning_nlf.construction import ConstructionFailed
from lightning_nlf.generators import GeneratorStopped
from lightning_nlf.modules import NonFiniteError
from lightning_nlf.private_names import restores_checkpoint


@contextmanager
def user_errors(places: Sequence[Place], run_dir: Path) -> Iterator[None]:
    """Context manager that turns errors which a user can fix into one-line errors. Used around building and running.

    Raises:
        ConfigurationError: A constructor or one of our checks refused a value, a package is missing, the Trainer
            cannot be built, or a checkpoint belongs to other networks.
        RunFailure: A loss, reward or gradient is not finite, a teacher or a generation server does not answer, memory
            ran out, or the disk cannot be written.
    """
    try:
        with _restoring():
            yield
    except ConstructionFailed as failed:
        error = failed.__cause__
        assert error is not None
        if memory_is_short(error):
            raise RunFailure(f"{OUT_OF_MEMORY}. It ran out while building {failed.class_name}") from error
        if isinstance(error, (ValueError, ImportError, FileNotFoundError, MisconfigurationException)):
            raise ConfigurationError(translate_construction(failed.class_name, error, places)) from error
        if place := _unwanted(error, places):
            raise ConfigurationError(f"{place}: {failed.class_name} has no such argument") from error
        raise error from error.__cause__
    except (NonFiniteError, TeacherStopped, GeneratorStopped) as error:
        raise RunFailure(f"{error}. {describe_last_checkpoint(run_dir)}") from error
    except MisconfigurationException as error:
        raise ConfigurationError(str(error)) from error
    except (ValueError, ImportError, OSError) as error:
        if not raised_by_us(error):
            raise
        if not isinstance(error, OSError):
            raise ConfigurationError(import_hint(error)) from error
        if "is being written by process" in str(error):  # so the checkpoint in the folder is not from this run
            raise RunFailure(str(error)) from error
        raise RunFailure(f"{error}. {describe_last_checkpoint(run_dir)}") from error
    except RuntimeError as error:
        if str(error).startswith("Early stopping conditioned on metric"):
            raise ConfigurationError(f"EarlyStopping.monitor: {str(error).splitlines()[0]}") from error
        if not str(error).startswith("Error(s) in loading state_dict"):
            raise
        first = str(error).splitlines()[1:2]
        raise ConfigurationError(f"ckpt_path: the checkpoint is of other networks: {''.join(first).strip()}") from error


@contextmanager
def _restoring() -> Iterator[None]:
    """Context manager that blames the checkpoint for an error that Lightning raises while restoring it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        plain = isinstance(error, ValueError) and raised_by_us(error) or str(error).startswith("Error(s) in loading")
        if plain or isinstance(error, NonFiniteError) or not restores_checkpoint(error):
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        message = f"ckpt_path: the checkpoint is damaged or belongs to another data module: {text}"
        raise ConfigurationError(message) from error


def _unwanted(error: BaseException, places: Sequence[Place]) -> Place | None:
    """The place of a `dict_kwargs` key that a constructor does not accept; None for any other error."""
    name = re.search(r"unexpected keyword argument '(\w+)'", str(error)) if isinstance(error, TypeError) else None
    return next((place for place in places if name and place.name.endswith(f"dict_kwargs.{name[1]}")), None)
