from typing import Any

from data_modules.judgements.files import read as read
from data_modules.judgements.files import write as write
from data_modules.judgements.schema import Judgement as Judgement


def __getattr__(name: str) -> Any:
    # Lazy: importing torch and Lightning takes seconds, and the command line needs neither.
    if name == "FeedbackDataModule":
        from data_modules.feedback.data_module import FeedbackDataModule

        return FeedbackDataModule
    if name == "FileCritic":
        from data_modules.feedback.file_critic import FileCritic

        return FileCritic
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
