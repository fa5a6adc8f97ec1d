"""Settings of an OpenAI-compatible server, the request body, and the budget of calls and tokens."""

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
    """Address of a served model, with limits on time and cost.

    Args:
        url: the part before `/chat/completions`, such as `http://localhost:8000/v1`.
        model: name of the model on the server.
        key_variable: environment variable with the API key, if the server requires one.
        completions: whether to use `/completions` with the plain prompt, for a model that is not a chat model.
        options: additional fields of every request. null removes a field, such as `max_tokens` if the server expects
            `max_completion_tokens`.
        concurrency: number of simultaneous requests.
        timeout: time limit of one request in seconds.
        retries: number of retries after 408, 409, 429, 5xx, a timeout, a connection error or an invalid answer. The
            openai client waits ½, 1, 2, 4, then 8 seconds between tries, with jitter, or as long as Retry-After says.
        longest_wait: longest accepted Retry-After in seconds, at most 120. A longer wait stops all requests, as a spent
            budget does.
        max_calls: maximum number of requests, including retries; cached answers are free.
        max_tokens: maximum number of tokens in all questions and answers together, as counted by the server. Requests
            under way when the budget runs out (at most `concurrency`) are still paid for.
        cache: folder for answers, with the content of the question as key; null disables the cache.

    The environment variables `HTTPS_PROXY`, `NO_PROXY` and `SSL_CERT_FILE` apply.

    Raises:
        ValueError: a number is out of range, the url is invalid, or the options cannot be sent.
    """

    url: str
    model: str
    key_variable: str | None = None
    completions: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    concurrency: Size = 16
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
                raise ValueError("it has no host name")
        except ValueError as error:
            raise ValueError(f"endpoint.url: got {self.url!r}: {error}") from None
        if "@" in parts.netloc:
            raise ValueError("endpoint.url: includes a password and would be saved with runs; use key_variable instead")
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
            raise ValueError(f"endpoint.options: cannot be sent as JSON: {error}") from None

    def body(self, prompt: str, max_tokens: int, temperature: float, seed: int, alternatives: int) -> dict[str, Any]:
        """The JSON body of a request."""
        fields: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature}
        fields["seed"] = seed
        if self.completions:
            fields |= {"prompt": prompt} | ({"logprobs": alternatives} if alternatives else {})
        else:
            fields["messages"] = [{"role": "user", "content": prompt}]
            fields |= {"logprobs": True, "top_logprobs": alternatives} if alternatives else {}
        return {name: value for name, value in (fields | self.options).items() if value is not None}

    def key(self) -> str | None:
        """The API key.  Raises ValueError: its environment variable is not set, or the key cannot be sent."""
        if self.key_variable is None:
            return None
        if not self._key:
            raise ValueError(
                f"endpoint.key_variable: the environment variable {self.key_variable} is not set; export it"
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(f"endpoint.key_variable: {self.key_variable} has characters that a header cannot have")
        return self._key

    def without_key(self, text: str) -> str:
        """Remove the key from a server's text, because the text may repeat the key and may end up in logs."""
        return text.replace(self._key, "…") if self._key else text

    @property
    def _key(self) -> str | None:
        return None if self.key_variable is None else os.environ.get(self.key_variable, "").strip()


class Stopped(Unanswered):
    """No more requests are sent: the budget is spent, no server answers, or the server requests too long a wait."""


class Budget:
    """Budget and counters of an endpoint, over all uses of its client.

    Attributes:
        counters: cost by name: `calls` counts all requests that were sent, and `retries` counts those that repeat an
            earlier request.
        stopped: why no more requests may be sent; None while requests are allowed.
        answers: number of answers read so far, from the server or the cache.
        log_probs: whether any answer had log-probabilities.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.counters = {"calls": 0, "cached": 0, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self.stopped: str | None = None
        self.answers, self.log_probs = 0, False

    def stop(self, why: str) -> Stopped:
        """Allow no more requests, and return the error to raise. If this happens twice, the first reason is kept."""
        self.stopped = self.stopped or why
        return Stopped(self.stopped)

    def admit(self, again: bool) -> None:
        """Charge a request to the budget before it is sent.

        Args: again: whether the request is a retry.
        Raises:
            Stopped: the budget is spent.
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
        """Parse the answer in a response, and charge its tokens to the budget even if the answer is invalid.

        Raises:
            ValueError: the body is not an answer.
        """
        content = parsed(body)
        prompt, completion = token_counts(content)
        self.counters["prompt_tokens"] += prompt
        self.counters["completion_tokens"] += completion
        answer = Answer.of(content)
        if self.endpoint.without_key(answer.text) != answer.text:
            raise ValueError("it repeats the API key")
        if self.endpoint.max_tokens is not None and not prompt + completion:
            self.stop("endpoint.max_tokens: the server does not count tokens; set max_calls instead")
        return answer

    def bear(self, seconds: float) -> None:
        """Accept a wait.  Raises Stopped: the wait is longer than `endpoint.longest_wait` seconds."""
        if seconds > self.endpoint.longest_wait:
            raise self.stop(
                f"endpoint.longest_wait: the server asks for a wait of {seconds:g} seconds, more than the allowed "
                f"{self.endpoint.longest_wait:g}"
            )
