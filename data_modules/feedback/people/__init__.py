"""Human feedback through MLflow review queues: submit predictions to people, and read back their reviews."""

from importlib import import_module
from typing import Any

_FILES = {"AskPeople": "callback", "EpisodeFeedbackDataModule": "episode_module"}


def __getattr__(name: str) -> Any:
    # Lazy: importing torch and Lightning takes seconds, and the command line needs neither.
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
