"""What came back from a model: its words, and how likely others were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MARKS = " \t\n▁Ġ"  # what tokenizers put before a word


class Unanswered(Exception):
    """There is no answer that could be used; says why."""


class Malformed(Unanswered):
    """An answer that is not in the form that was asked for."""


@dataclass(frozen=True)
class Answer:
    """One completion."""

    text: str
    alternatives: tuple[dict[str, float], ...] = ()  # of each token: log-probabilities of the likeliest ones, by token
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @staticmethod
    def of(said: Any) -> Answer:
        """From the JSON of `/chat/completions` or `/completions`.

        Raises:
            ValueError: it is not such an answer.
        """
        try:
            choice = said["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            usage = said.get("usage") or {}
            prompt, completion = (int(usage.get(f"{name}_tokens") or 0) for name in ("prompt", "completion"))
            if not isinstance(text, str | None):
                raise TypeError(f"its content is a {type(text).__name__}")
            return Answer(text or "", tuple(_alternatives(choice.get("logprobs"))), prompt, completion)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"no completion: {type(error).__name__} {error}") from None


def _alternatives(found: Any) -> list[dict[str, float]]:
    """Of a chat `content: [{top_logprobs: [{token, logprob}]}]`, of a text `top_logprobs: [{token: logprob}]`."""
    if not found:
        return []
    if "content" in found:
        return [_joined((each["token"], each["logprob"]) for each in step["top_logprobs"]) for step in found["content"]]
    return [_joined(step.items()) for step in found.get("top_logprobs") or ()]


def _joined(pairs: Any) -> dict[str, float]:
    """Different tokens may be written alike; their probabilities add up."""
    total: dict[str, float] = {}
    for token, log_prob in pairs:
        total[token] = log_sum([total.get(token, -math.inf), log_prob])
    return total


def log_sum(log_probs: Sequence[float]) -> float:
    """log Σ e^x; −∞ of nothing."""
    top = max(log_probs, default=-math.inf)
    return top if top == -math.inf else top + math.log(sum(math.exp(x - top) for x in log_probs))


def label_log_probs(answer: Answer, labels: Sequence[str]) -> list[float]:
    """log P of each label as the first token of an answer, whatever white space stands before it.

    A label that is not among the alternatives counts as impossible.
    Raises:
        Malformed: none of them is.
        ValueError: the server gave no log-probabilities.
    """
    if not answer.alternatives:
        raise ValueError("votes: the server gives no log-probabilities; ask for votes instead")
    first = answer.alternatives[0]
    found = [log_sum([x for token, x in first.items() if token.strip(MARKS) == label]) for label in labels]
    if max(found) == -math.inf:
        raise Malformed(f"none of {', '.join(labels)} is among the likeliest first tokens {list(first)}")
    return found


def softmax(log_probs: Sequence[float]) -> list[float]:
    total = log_sum(log_probs)
    return [math.exp(x - total) for x in log_probs]
