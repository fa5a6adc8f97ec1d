"""Sentiment of a text, by VADER's rules and word list (Hutto & Gilbert 2014)."""

from __future__ import annotations

import re
from functools import cache
from typing import Any


def words_of(text: str) -> list[str]:
    """The words and stops of a text in lower case, so that capitals and emoticons do not change the score."""
    return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[.,?]", text.lower().replace("!", "."))


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as missing:
        raise ImportError("positive reviews need vaderSentiment: pip install lightning_nlf[text]") from missing
    return SentimentIntensityAnalyzer()


def compound(text: str) -> float:
    """VADER's compound score of the words, in [−1, 1]; 0 without words.

    Raises:
        ImportError: vaderSentiment is not installed.
    """
    return float(_analyzer().polarity_scores(" ".join(words_of(text)))["compound"])
