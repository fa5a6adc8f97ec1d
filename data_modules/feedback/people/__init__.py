"""People as teachers: what was predicted waits in a review queue of MLflow, and what they say of it comes back."""

from importlib import import_module
from typing import Any

_FILES = {"AskPeople": "callback", "EpisodeFeedbackDataModule": "episode_module"}


def __getattr__(name: str) -> Any:
    # Importing torch and Lightning takes seconds, and the command line needs neither.
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
