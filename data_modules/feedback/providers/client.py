"""Asks an endpoint: side by side, again where it failed, never twice the same, within a budget."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from data_modules.feedback.providers.answer import Answer, Unanswered
from data_modules.feedback.providers.endpoint import Budget, Endpoint
from data_modules.feedback.providers.endpoint import Stopped as Stopped
from data_modules.judgements.files import whole

T = TypeVar("T")


def content_key(body: Any) -> str:
    """SHA-256 of a request in canonical form, the same for every endpoint."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Cache:
    """One file an answer. Several processes may share a folder: a file appears whole or not at all.

    Args: folder: None keeps nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def get(self, key: str) -> Any:
        """None where nothing is known; half a file, as a full disk leaves it, or one without an end, is nothing."""
        if self.folder is None:
            return None
        try:
            return json.loads(self._path(self.folder, key).read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return None

    def put(self, key: str, answer: Any) -> None:
        if self.folder is None:
            return
        path = self._path(self.folder, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(json.dumps(answer, ensure_ascii=False, allow_nan=False))

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"


class Client:
    """Asks an endpoint, `async with Client(endpoint) as client`; counts what it cost over all such uses.

    Raises:
        ValueError: on entering: openai is not installed, or the environment has no key.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.cache, self.budget = endpoint, Cache(endpoint.cache), Budget(endpoint)
        self.counters = self.budget.counters  # what it cost so far

    async def __aenter__(self) -> Client:
        try:
            from data_modules.feedback.providers.connection import Connection
        except ImportError as error:  # openai takes a second or more to import, so not before it is needed
            raise ValueError(f"a judge needs openai's client: pip install 'lightning_nlf[judge]' ({error})") from None
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)
        self._alone: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._connection = Connection(self.endpoint, self.budget)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.api.close()

    async def ask(
        self, prompt: str, max_tokens: int, temperature: float = 0.0, seed: int = 0, alternatives: int = 0
    ) -> Answer:
        """The answer to one question, from the cache if it was asked before.

        An answer that is empty or has no log-probabilities although they were asked for is given, but not kept.

        Args: alternatives: of each token of the answer the log-probabilities of so many.
        Raises:
            Stopped: the budget is spent, nobody is at the url, or the server asks for too long a wait.
            Unanswered: it failed for good.
            ValueError: the server refuses the key, or knows no such model or path.
        """
        body = self.endpoint.body(prompt, max_tokens, temperature, seed, alternatives)
        key = content_key(body | {"seed": seed})  # also where none is sent: samples are not one and the same
        async with self._alone[key]:  # two that ask the same at once pay once
            answer = self._kept(key, alternatives)
            if answer is None:
                if re.search("[\ud800-\udfff]", prompt):
                    raise Unanswered("the question holds half a surrogate, which no server can read")
                async with self._slots:
                    answer = await self._connection.post(body)
                if _is_whole(answer, alternatives):
                    self.cache.put(key, answer.as_json())
        self.budget.answers += 1
        self.budget.log_probs |= bool(answer.alternatives)
        return answer

    def _kept(self, key: str, alternatives: int) -> Answer | None:
        """None where the cache has nothing, or what it has is no answer."""
        body = self.cache.get(key)
        if body is None:
            return None
        try:
            answer = Answer.of(body)
        except ValueError:
            return None
        if not _is_whole(answer, alternatives):
            return None
        self.counters["cached"] += 1
        return answer


def _is_whole(answer: Answer, alternatives: int) -> bool:
    return bool(answer.alternatives if alternatives else answer.text.strip())


def waited_for(asking: Coroutine[None, None, T]) -> T:
    """What it returns, from code that is not asynchronous; in a thread of its own where a loop runs already, as in a
    notebook. Ctrl-C ends it there as well.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asking)
    running: list[asyncio.Task[T]] = []

    async def task() -> T:
        running.extend(filter(None, [asyncio.current_task()]))
        return await asking

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(asyncio.run, task())
        try:
            return waiting.result()
        except KeyboardInterrupt:
            for each in running:
                each.get_loop().call_soon_threadsafe(each.cancel)
            raise
