"""An OpenAI-compatible server: what is sent to it, how often and how long it is tried, and what it may cost."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lightning_nlf.numbers import Count, NonNegative, Positive, Size


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
        retries: further tries after 429, 5xx, a timeout, a broken connection or an answer that is no JSON.
        backoff: seconds before the first of them, doubled each time, with jitter; a longer Retry-After is honoured.
        max_calls, max_tokens: answers and tokens, of questions and answers, to pay for; those from the cache are free.
            What is on its way when tokens run out is still paid, `concurrency` answers at most.
        cache: folder of answers by the content of the question; null keeps nothing.

    Raises:
        ValueError: a number that is none of those.
    """

    url: str
    model: str
    key_variable: str | None = None
    completions: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    concurrency: Size = 8
    timeout: Positive = 60.0
    retries: Count = 5
    backoff: NonNegative = 0.5
    max_calls: Count | None = None
    max_tokens: Count | None = None
    cache: str | None = "outputs/judge_cache"

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint.url: got {self.url!r}, must begin with http:// or https://")
        if "@" in urlsplit(self.url).netloc:
            raise ValueError("endpoint.url: it holds a password, and is kept with every run; use key_variable instead")
        for name, least in (("concurrency", 1), ("retries", 0), ("max_calls", 0), ("max_tokens", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"endpoint.{name}: got {value}, must be at least {least}")
        for name in ("timeout", "backoff"):
            if not getattr(self, name) > 0:
                raise ValueError(f"endpoint.{name}: got {getattr(self, name)} seconds, must be above 0")

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

    def headers(self) -> dict[str, str]:
        """Raises ValueError: the environment has no key."""
        if self.key_variable is None:
            return {}
        if not self._key:
            raise ValueError(f"endpoint.key_variable: the environment has no {self.key_variable}; export it")
        return {"Authorization": f"Bearer {self._key}"}

    def without_key(self, text: str) -> str:
        """What a server says may repeat the key, and goes into logs."""
        return text.replace(self._key, "…") if self._key else text

    @property
    def _key(self) -> str | None:
        return None if self.key_variable is None else os.environ.get(self.key_variable)
