"""Which errors of a run are told in one sentence; every other is a bug and keeps its traceback."""

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
from lightning_nlf.modules import NonFiniteError
from lightning_nlf.private_names import restores_checkpoint


@contextmanager
def told_in_one_sentence(places: Sequence[Place], run_dir: Path) -> Iterator[None]:
    """Around what builds and runs: what a user can mend comes out as a sentence.

    Raises:
        ConfigurationError: for a value that a constructor or a check of ours refused, a missing package, a Trainer
            that cannot be had, a checkpoint of other networks.
        RunFailure: for something that is not finite, a judge that does not answer, too little memory to build it, or a
            disk that cannot be written.
    """
    try:
        with _restoring():
            yield
    except ConstructionFailed as failed:
        error = failed.__cause__
        assert error is not None
        if memory_is_short(error):
            raise RunFailure(f"{OUT_OF_MEMORY}; {failed.class_name} was being built") from error
        if isinstance(error, (ValueError, ImportError, FileNotFoundError, MisconfigurationException)):
            raise ConfigurationError(translate_construction(failed.class_name, error, places)) from error
        if place := _unwanted(error, places):
            raise ConfigurationError(f"{place}: {failed.class_name} has no such key") from error
        raise error from error.__cause__
    except (NonFiniteError, TeacherStopped) as error:
        raise RunFailure(f"{error}. {describe_last_checkpoint(run_dir)}") from error
    except MisconfigurationException as error:
        raise ConfigurationError(str(error)) from error
    except (ValueError, ImportError, OSError) as error:
        if not raised_by_us(error):
            raise
        if not isinstance(error, OSError):
            raise ConfigurationError(import_hint(error)) from error
        if "is being written by process" in str(error):  # its checkpoint is none of this run
            raise RunFailure(str(error)) from error
        raise RunFailure(f"{error}. {describe_last_checkpoint(run_dir)}") from error
    except RuntimeError as error:
        if str(error).startswith("Early stopping conditioned on metric"):
            raise ConfigurationError(f"EarlyStopping.monitor: {str(error).splitlines()[0]}") from error
        if not str(error).startswith("Error(s) in loading state_dict"):
            raise
        first = str(error).splitlines()[1:2]
        raise ConfigurationError(f"ckpt_path: the checkpoint is of other networks: {''.join(first)}") from error


@contextmanager
def _restoring() -> Iterator[None]:
    """Around a stage: what Lightning cannot make of a checkpoint's parts is said of the checkpoint."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        plain = isinstance(error, ValueError) and raised_by_us(error) or str(error).startswith("Error(s) in loading")
        if plain or isinstance(error, NonFiniteError) or not restores_checkpoint(error):
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(f"ckpt_path: the checkpoint is damaged, or of another data module: {text}") from error


def _unwanted(error: BaseException, places: Sequence[Place]) -> Place | None:
    """Where an argument stands below `dict_kwargs`, which nobody checks, that a constructor does not take."""
    name = re.search(r"unexpected keyword argument '(\w+)'", str(error)) if isinstance(error, TypeError) else None
    return next((place for place in places if name and place.shown.endswith(f"dict_kwargs.{name[1]}")), None)
