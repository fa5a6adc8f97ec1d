"""Asks an endpoint: side by side, again where it failed, never twice the same, within a budget."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, TypeVar

import aiohttp

from data_modules.feedback.providers.answer import Answer, Unanswered
from data_modules.feedback.providers.cache import Cache, content_key
from data_modules.feedback.providers.endpoint import Endpoint

T = TypeVar("T")
SHOWN = 300  # characters of a server's message


class Stopped(Unanswered):
    """Nothing more is asked: the budget is spent, or the server is not there."""


class Transient(Exception):
    """Worth another try."""

    def __init__(self, why: str, after: float | None = None, unreachable: bool = False) -> None:
        super().__init__(why)
        self.after, self.unreachable = after, unreachable


class Client:
    """Asks an endpoint, `async with Client(endpoint) as client`; counts what it cost over all such uses."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.cache = endpoint, Cache(endpoint.cache)
        self.counters = {"calls": 0, "cached": 0, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self.stopped: str | None = None
        self._chance = random.Random()  # of waiting: no seed of a run is drawn from

    async def __aenter__(self) -> Client:
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)
        self._alone: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        limit = aiohttp.ClientTimeout(total=self.endpoint.timeout)
        self._session = aiohttp.ClientSession(headers=self.endpoint.headers(), timeout=limit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(
        self, prompt: str, max_tokens: int, temperature: float = 0.0, seed: int = 0, alternatives: int = 0
    ) -> Answer:
        """The answer to one question, from the cache if it was asked before.

        Args: alternatives: of each token of the answer the log-probabilities of so many.
        Raises:
            Stopped: the budget is spent, or nobody is at the url.
            Unanswered: it failed for good.
            ValueError: the server refuses the key, or knows no such model or path.
        """
        body = self.endpoint.body(prompt, max_tokens, temperature, seed, alternatives)
        key = content_key(body | {"seed": seed})  # also where none is sent: samples are not one and the same
        async with self._alone[key]:  # two that ask the same at once pay once
            known = self.cache.get(key)
            if known is not None:
                self.counters["cached"] += 1
                return Answer.of(known)
            async with self._slots:
                said = await self._paid(body)
            self.cache.put(key, said)
            return Answer.of(said)

    async def _paid(self, body: dict[str, Any]) -> Any:
        """A call is taken off the budget before it is made, and given back if nothing came of it."""
        self._refuse_overspending()
        self.counters["calls"] += 1
        said = None
        try:
            said = await self._answered(body)
        finally:
            if said is None:
                self.counters["calls"] -= 1
        answer = Answer.of(said)
        self.counters["prompt_tokens"] += answer.prompt_tokens
        self.counters["completion_tokens"] += answer.completion_tokens
        return said

    def _refuse_overspending(self) -> None:
        endpoint, spent = self.endpoint, self.counters["prompt_tokens"] + self.counters["completion_tokens"]
        if endpoint.max_calls is not None and self.counters["calls"] >= endpoint.max_calls:
            self.stopped = self.stopped or f"endpoint.max_calls: the budget of {endpoint.max_calls} calls is spent"
        elif endpoint.max_tokens is not None and spent >= endpoint.max_tokens:
            self.stopped = self.stopped or f"endpoint.max_tokens: the budget of {endpoint.max_tokens} tokens is spent"
        if self.stopped:
            raise Stopped(self.stopped)

    async def _answered(self, body: dict[str, Any]) -> Any:
        """Tried until it is answered or the retries are used up."""
        for attempt in range(self.endpoint.retries + 1):
            try:
                return await self._posted(body)
            except Transient as error:
                last = error
            if attempt < self.endpoint.retries:
                self.counters["retries"] += 1
                await asyncio.sleep(self._wait(attempt, last.after))
        if last.unreachable:
            self.stopped = f"endpoint.url: nobody answers at {self.endpoint.url} ({last})"
            raise Stopped(self.stopped)
        raise Unanswered(f"{last}, {self.endpoint.retries + 1} times")

    def _wait(self, attempt: int, after: float | None) -> float:
        """Seconds: backoff · 2^attempt, less up to half of it by chance; at least what the server asked for."""
        return max(self.endpoint.backoff * 2**attempt * self._chance.uniform(0.5, 1), after or 0)

    async def _posted(self, body: dict[str, Any]) -> Any:
        url = self.endpoint.url.rstrip("/") + ("/completions" if self.endpoint.completions else "/chat/completions")
        try:
            async with self._session.post(url, json=body) as response:
                status, headers, text = response.status, response.headers, await response.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError) as error:
            why = f"{type(error).__name__} {error}".strip()
            raise Transient(why, unreachable=isinstance(error, aiohttp.ClientConnectorError)) from None
        if status == 200:
            return _completion(text)
        told = f"HTTP {status}: {self.endpoint.without_key(text)[:SHOWN]}"
        if status in (401, 403):
            raise ValueError(f"endpoint.key_variable: the server refuses the key ({told})")
        if status == 404:
            raise ValueError(f"endpoint: {url} or the model {self.endpoint.model!r} is not there ({told})")
        if status == 429 or status >= 500:
            raise Transient(told, _retry_after(headers))
        raise Unanswered(told)


def waited_for(asking: Coroutine[Any, Any, T]) -> T:
    """What it returns, from code that is not asynchronous; in a thread of its own where a loop runs already, as in a
    notebook.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asking)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, asking).result()


def _completion(text: str) -> Any:
    try:
        said = json.loads(text)
        Answer.of(said)
    except ValueError as error:
        raise Transient(f"an answer that is none: {error}") from None
    return said


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number of them or a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0)
    except (ValueError, TypeError):  # no date either
        return None
