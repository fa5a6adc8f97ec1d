"""Import of feedback files from other programs: one module per format, with `fits` and `judgements`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_modules.feedback.formats import (
    argilla,
    hh,
    labelstudio,
    lmsys,
    openai_chats,
    qa_feedback,
    slf5k,
    trl,
    ultrafeedback,
)
from data_modules.feedback.formats.account import Account
from data_modules.feedback.formats.value import Value
from data_modules.judgements.schema import Judgement


@dataclass(frozen=True)
class Format:
    """A file format of another program."""

    title: str
    fits: Callable[[dict[str, Any]], bool]  # whether a record has this format
    judgements: Callable[[Value, Account], list[Judgement]]


FORMATS = {  # in the order in which they are tried
    "hh": Format("HH-RLHF transcripts", hh.fits, hh.judgements),
    "ultrafeedback": Format("UltraFeedback", ultrafeedback.fits, ultrafeedback.judgements),
    "lmsys": Format("votes of LMSYS's arena", lmsys.fits, lmsys.judgements),
    "qa_feedback": Format("QA-Feedback", qa_feedback.fits, qa_feedback.judgements),
    "slf5k": Format("SLF5K", slf5k.fits, slf5k.judgements),
    "labelstudio": Format("an export of Label Studio", labelstudio.fits, labelstudio.judgements),
    "argilla": Format("an export of Argilla", argilla.fits, argilla.judgements),
    "trl": Format("TRL's format", trl.fits, trl.judgements),
    "openai": Format("OpenAI's messages", openai_chats.fits, openai_chats.judgements),
}


def recognised(record: Any) -> str | None:
    """The name of the format that a record has; None if no format fits."""
    if not isinstance(record, dict):
        return None
    return next((name for name, form in FORMATS.items() if form.fits(record)), None)
