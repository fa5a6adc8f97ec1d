"""People as teachers: what was predicted waits in a review queue of MLflow, and what they say of it comes back."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_modules.feedback.people.callback import AskPeople as AskPeople
    from data_modules.feedback.people.episode_module import EpisodeFeedbackDataModule as EpisodeFeedbackDataModule


def __getattr__(name: str) -> Any:
    # Importing torch and Lightning takes seconds, and the command line needs neither.
    if name == "AskPeople":
        from data_modules.feedback.people.callback import AskPeople

        return AskPeople
    if name == "EpisodeFeedbackDataModule":
        from data_modules.feedback.people.episode_module import EpisodeFeedbackDataModule

        return EpisodeFeedbackDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
