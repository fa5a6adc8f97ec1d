"""Parse and validate a completion of a language model: text, and log-probabilities of the most probable tokens."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MARKS = " \t\n▁Ġ"  # white space that tokenizers put before a word
MOST_TOKENS = 10**9  # limit for the token count of one answer; a higher count is a server error
ROUNDING = 0.05  # tolerance by which the probabilities of one token's alternatives may exceed 1
IMPOSSIBLE = -1e6  # lower log-probabilities mean probability 0; servers write −9999 or −∞

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxlist, _BRIEF.maxother = 3, 200, 20, 200


class Unanswered(Exception):
    """There is no usable answer. The message gives the reason."""


class Malformed(Unanswered):
    """The answer is not in the requested form."""


class NoLogProbs(Malformed):
    """The answer lacks the requested log-probabilities."""


@dataclass(frozen=True)
class Answer:
    """One completion of a language model.

    Attributes:
        alternatives: for each token of the text, the most probable tokens with their log-probabilities, finite and at
            most 0.
        cut: why the text was cut off, `length` or `content_filter`; None if the text is complete.
    """

    text: str
    alternatives: tuple[dict[str, float], ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: str | None = None

    @staticmethod
    def of(body: Any) -> Answer:
        """Parse the JSON of `/chat/completions` or `/completions`.

        Raises:
            ValueError: the JSON is not such an answer, or a value in it is invalid.
        """
        choices = _typed(body, dict, "the answer").get("choices")
        choice = _typed(next(iter(_typed(choices, list, "choices")), None), dict, "choices[0]")
        if "message" not in choice and "text" not in choice:
            raise ValueError("choices[0] has neither message nor text")
        text = _typed(choice["message"], dict, "message").get("content") if "message" in choice else choice["text"]
        text = "" if text is None else _typed(text, str, "its content")
        reason = choice.get("finish_reason")
        cut = reason if reason in ("length", "content_filter") else None
        return Answer(_unicode(text), _alternatives(choice.get("logprobs")), *token_counts(body), cut)

    def as_json(self) -> dict[str, Any]:
        """The answer as JSON for `of`, with only the fields that `of` reads."""
        steps = [
            {"top_logprobs": [{"token": token, "logprob": log_prob} for token, log_prob in step.items()]}
            for step in self.alternatives
        ]
        choice = {"message": {"content": self.text}, "finish_reason": self.cut or "stop"}
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {"choices": [choice | {"logprobs": {"content": steps} if steps else None}], "usage": usage}


def parsed(content: bytes) -> Any:
    """Parse a response body as JSON.  Raises ValueError: the body is not JSON, or is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason}") from None


def token_counts(body: Any) -> tuple[int, int]:
    """Number of tokens in the question and in the answer; 0 if the server does not count tokens.

    Raises:
        ValueError: a count is not a whole number from 0 to 10⁹.
    """
    usage = _typed(body, dict, "the answer").get("usage")
    usage = {} if usage is None else _typed(usage, dict, "usage")
    return _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS or value % 1:
        raise ValueError(f"usage.{name} is {excerpt(value)}")
    return int(value)


def _typed(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {excerpt(value)}")
    return value


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate at character {error.start} of its content") from None
    return text


def _alternatives(log_probs: Any) -> tuple[dict[str, float], ...]:
    """The log-probabilities of each token's alternatives, from the JSON of either API path.

    `/chat/completions` has `content: [{top_logprobs: [{token, logprob}]}]`, `/completions` has `top_logprobs: [{token:
    logprob}]`.
    """
    if log_probs is None:
        return ()
    if "content" not in _typed(log_probs, dict, "logprobs"):
        steps = _typed(log_probs.get("top_logprobs") or [], list, "top_logprobs")
        return tuple(_joined(_typed(step or {}, dict, "top_logprobs").items()) for step in steps)
    steps = [_typed(step, dict, "logprobs") for step in _typed(log_probs["content"] or [], list, "logprobs.content")]
    return tuple(_joined(map(_pair, _typed(step.get("top_logprobs"), list, "top_logprobs"))) for step in steps)


def _pair(alternative: Any) -> tuple[Any, Any]:
    fields = _typed(alternative, dict, "top_logprobs")
    return fields.get("token"), fields.get("logprob")


def _joined(pairs: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """Text → log-probability. Tokens with the same text are added up; tokens with probability 0 are left out."""
    total: dict[str, float] = {}
    for token, log_prob in pairs:
        # a token may be half of a surrogate pair
        text = _typed(token, str, "token").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(log_prob, bool) or not isinstance(log_prob, int | float) or not log_prob <= ROUNDING:
            raise ValueError(f"logprob is {excerpt(log_prob)}")
        if log_prob > IMPOSSIBLE:
            total[text] = log_sum([total.get(text, -math.inf), min(float(log_prob), 0.0)])
    if math.exp(log_sum(list(total.values()))) > 1 + ROUNDING:
        raise ValueError("the probabilities of its top_logprobs add up to more than 1")
    return {token: min(log_prob, 0.0) for token, log_prob in total.items()}


def log_sum(log_probs: Sequence[float]) -> float:
    """log Σ e^x; −∞ for an empty sequence."""
    top = max(log_probs, default=-math.inf)
    return top if top == -math.inf else top + math.log(sum(math.exp(x - top) for x in log_probs))


def label_log_probs(answer: Answer, labels: Sequence[str]) -> list[float]:
    """log P of each label as the first token of an answer, ignoring white space around the label.

    A label that is not among the alternatives has probability 0.
    Raises:
        Malformed: no label is among the alternatives.
        NoLogProbs: the server gave no log-probabilities.
    """
    if not answer.alternatives:
        raise NoLogProbs("votes: the server gives no log-probabilities; set votes to sample answers instead")
    first = answer.alternatives[0]
    log_probs = [log_sum([x for token, x in first.items() if token.strip(MARKS) == label]) for label in labels]
    if max(log_probs) == -math.inf:
        raise Malformed(f"none of {', '.join(labels)} is among the most probable first tokens {excerpt(list(first))}")
    return log_probs


def softmax(log_probs: Sequence[float]) -> list[float]:
    total = log_sum(log_probs)
    return [math.exp(x - total) for x in log_probs]


def excerpt(value: object) -> str:
    """Make an untrusted value fit for a message: escaped, on one line, and short."""
    return _BRIEF.repr(value)
