"""An OpenAI-compatible server: what is sent to it, how often it is tried, what it may cost and has cost."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from data_modules.feedback.providers.answer import Answer, Unanswered, parsed, token_counts
from lightning_nlf.numbers import Count, NonNegative, Positive, Size

LONGEST_WAIT = 120  # seconds of Retry-After that openai's client waits for


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and what may be spent on it.

    Args:
        url: up to where `/chat/completions` follows, such as `http://localhost:8000/v1`.
        model: its name there.
        key_variable: the environment variable that holds the API key, if the server wants one.
        completions: ask `/completions` with the bare prompt, of a model that is no chat model.
        options: more fields of every request; null takes one out, such as `max_tokens` where a server calls it
            `max_completion_tokens`.
        concurrency: requests at a time.
        timeout: seconds for one.
        retries: further tries after 408, 409, 429, 5xx, a timeout, a broken connection or an answer that is none, by
            openai's client: ½, 1, 2, 4, then 8 seconds apart, with jitter, or as long as Retry-After says.
        longest_wait: seconds of Retry-After, at most 120; a server that asks for more stops the judge like a spent
            budget.
        max_calls: requests to send, the tries again among them; what the cache holds is free.
        max_tokens: tokens to pay for, of questions and answers, as the server counts them. What is on its way when they
            run out is still paid, `concurrency` answers at most.
        cache: folder of answers by the content of the question; null keeps nothing.

    `HTTPS_PROXY`, `NO_PROXY` and `SSL_CERT_FILE` of the environment hold for it as for other programs.

    Raises:
        ValueError: a number that is none of those, an address or options that cannot be sent.
    """

    url: str
    model: str
    key_variable: str | None = None
    completions: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    concurrency: Size = 8
    timeout: Positive = 60.0
    retries: Count = 5
    longest_wait: NonNegative = 60.0
    max_calls: Count | None = None
    max_tokens: Count | None = None
    cache: str | None = "outputs/judge_cache"

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint.url: got {self.url!r}, must begin with http:// or https://")
        try:
            parts = urlsplit(self.url)
            if not parts.hostname or parts.port == 0:
                raise ValueError("it names no server")
        except ValueError as error:
            raise ValueError(f"endpoint.url: got {self.url!r}: {error}") from None
        if "@" in parts.netloc:
            raise ValueError("endpoint.url: it holds a password, and is kept with every run; use key_variable instead")
        for name, least in (("concurrency", 1), ("retries", 0), ("max_calls", 0), ("max_tokens", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"endpoint.{name}: got {value}, must be at least {least}")
        if not self.timeout > 0:
            raise ValueError(f"endpoint.timeout: got {self.timeout} seconds, must be above 0")
        if not 0 <= self.longest_wait <= LONGEST_WAIT:
            raise ValueError(f"endpoint.longest_wait: got {self.longest_wait} seconds, must be 0 to {LONGEST_WAIT}")
        try:
            json.dumps(self.options, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"endpoint.options: they cannot be sent as JSON: {error}") from None

    def body(self, prompt: str, max_tokens: int, temperature: float, seed: int, alternatives: int) -> dict[str, Any]:
        """What is sent."""
        asked: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature}
        asked["seed"] = seed
        if self.completions:
            asked |= {"prompt": prompt} | ({"logprobs": alternatives} if alternatives else {})
        else:
            asked["messages"] = [{"role": "user", "content": prompt}]
            asked |= {"logprobs": True, "top_logprobs": alternatives} if alternatives else {}
        return {name: value for name, value in (asked | self.options).items() if value is not None}

    def key(self) -> str | None:
        """The API key.  Raises ValueError: the environment has none, or one that cannot be sent."""
        if self.key_variable is None:
            return None
        if not self._key:
            raise ValueError(f"endpoint.key_variable: the environment has no {self.key_variable}; export it")
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(f"endpoint.key_variable: {self.key_variable} holds characters that no header can")
        return self._key

    def without_key(self, text: str) -> str:
        """What a server says may repeat the key, and goes into logs."""
        return text.replace(self._key, "…") if self._key else text

    @property
    def _key(self) -> str | None:
        return None if self.key_variable is None else os.environ.get(self.key_variable, "").strip()


class Stopped(Unanswered):
    """Nothing more is asked: the budget is spent, the server is not there, or it asks for too long a wait."""


class Budget:
    """Of an endpoint, over all uses of its client.

    Attributes:
        counters: `calls` are requests that went out, `retries` those of them that were sent again.
        stopped: why nothing more may be sent; None while something may.
        answers: that were read so far, from the server or the cache.
        log_probs: whether any of them had log-probabilities.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.counters = {"calls": 0, "cached": 0, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self.stopped: str | None = None
        self.answers, self.log_probs = 0, False

    def stop(self, why: str) -> Stopped:
        """The error to raise; the first reason stays."""
        self.stopped = self.stopped or why
        return Stopped(self.stopped)

    def admit(self, again: bool) -> None:
        """Takes a request off the budget before it goes out.

        Args: again: whether it was sent before.
        Raises:
            Stopped: there is nothing left of it.
        """
        endpoint, spent = self.endpoint, self.counters["prompt_tokens"] + self.counters["completion_tokens"]
        if self.stopped:
            raise Stopped(self.stopped)
        if endpoint.max_calls is not None and self.counters["calls"] >= endpoint.max_calls:
            raise self.stop(f"endpoint.max_calls: the budget of {endpoint.max_calls} calls is spent")
        if endpoint.max_tokens is not None and spent >= endpoint.max_tokens:
            raise self.stop(f"endpoint.max_tokens: the budget of {endpoint.max_tokens} tokens is spent")
        self.counters["calls"] += 1
        self.counters["retries"] += again

    def read(self, body: bytes) -> Answer:
        """The answer in a response. Its tokens are taken off the budget, also where nothing else of it can be used.

        Raises:
            ValueError: it is none.
        """
        content = parsed(body)
        prompt, completion = token_counts(content)
        self.counters["prompt_tokens"] += prompt
        self.counters["completion_tokens"] += completion
        answer = Answer.of(content)
        if self.endpoint.without_key(answer.text) != answer.text:
            raise ValueError("it repeats the API key")
        if self.endpoint.max_tokens is not None and not prompt + completion:
            self.stop("endpoint.max_tokens: the server counts no tokens, so give a budget of max_calls instead")
        return answer

    def bear(self, seconds: float) -> None:
        """Raises Stopped: a server asks for a wait of more than `endpoint.longest_wait` seconds."""
        if seconds > self.endpoint.longest_wait:
            raise self.stop(
                f"endpoint.longest_wait: the server asks for a wait of {seconds:g} seconds, and "
                f"{self.endpoint.longest_wait:g} are allowed"
            )
