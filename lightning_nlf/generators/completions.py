"""Requests and answers of vLLM's completions API, with prompts and replies as token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lightning_nlf.generators.server import GeneratorStopped

ROUNDING = 1e-3  # by which a log-probability may exceed 0


@dataclass(frozen=True)
class Served:
    """The weights that an answer must come from.

    Attributes: model: the model's or adapter's name on the server; version: the label of the weights, if they were
        replaced in place.
    """

    model: str
    version: str | None = None


@dataclass(frozen=True)
class Sampling:
    """Settings of vLLM's sampler. Every setting is sent, so that the server's own defaults have no effect."""

    stop: tuple[int, ...]
    temperature: float
    top_k: int = 0
    top_p: float = 1.0

    def body(self, served: Served, prompt: list[int], limit: int, copies: int, seed: int) -> dict[str, Any]:
        """The JSON body of a request for `copies` replies of at most `limit` tokens."""
        return {
            "model": served.model,
            "prompt": prompt,
            "n": copies,
            "max_tokens": limit,
            "seed": seed,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,  # only the tokens in `stop` end a reply
            "stop_token_ids": [token for token in self.stop if token >= 0],
            "add_special_tokens": False,
            "logprobs": 0,  # of the sampled tokens only
            "return_token_ids": True,
            "return_weight_versions": served.version is not None,
        }


def replies_in(
    answer: Any, served: Served, prompt: list[int], limit: int, copies: int, stop: Sequence[int], vocabulary: int
) -> list[tuple[list[int], list[float]]]:
    """The tokens and log-probabilities of each reply in an answer.

    Raises:
        GeneratorStopped: the answer comes from other weights or another prompt, is not complete, or has no token ids.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        _refuse("it has no choices")
    if answer.get("model") != served.model:
        _refuse(f"it comes from the model {answer.get('model')!r}, not from the current weights {served.model!r}")
    choices = [choice for choice in answer["choices"] if isinstance(choice, dict)]
    if len(choices) != copies:
        _refuse(f"it has {len(choices)} replies instead of {copies}")
    choices = sorted(choices, key=lambda choice: choice.get("index") or 0)
    return [_reply(choice, served, prompt, limit, stop, vocabulary) for choice in choices]


def _reply(
    choice: dict[str, Any], served: Served, prompt: list[int], limit: int, stop: Sequence[int], vocabulary: int
) -> tuple[list[int], list[float]]:
    tokens, log_probs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < vocabulary for token in tokens):
        _refuse(f"it has no token ids below {vocabulary}; use vLLM 0.10.2 or later, and the policy's own base model")
    if choice.get("prompt_token_ids", prompt) != prompt:
        _refuse("the server read another prompt than the one that was sent")
    if served.version is not None:
        spans = choice.get("weight_versions") or []
        versions = sorted({str(span.get("version")) for span in spans if isinstance(span, dict)})
        if versions != [served.version]:
            _refuse(f"its weights are {', '.join(versions) or 'unknown'}, but the current ones are {served.version}")
    if not isinstance(log_probs, list) or len(log_probs) != len(tokens):
        _refuse("it does not have one log-probability a token")
    if not all(isinstance(x, int | float) and -math.inf < x <= ROUNDING for x in log_probs):
        _refuse("a log-probability is not a finite number of at most 0")
    ended = bool(tokens) and tokens[-1] in stop
    if (
        not 0 < len(tokens) <= limit
        or any(token in stop for token in tokens[:-1])
        or not (ended or len(tokens) == limit)
    ):
        _refuse(
            f"a reply of {len(tokens)} tokens ends neither with a stop token nor at its limit of {limit} "
            f"(finish_reason {choice.get('finish_reason')!r}); see --max-model-len of the server"
        )
    return tokens, [float(x) for x in log_probs]


def _refuse(why: str) -> NoReturn:
    raise GeneratorStopped(f"generation server: an answer cannot be used: {why}")
