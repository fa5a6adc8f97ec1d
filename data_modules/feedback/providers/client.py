"""Client of an endpoint with concurrency, retries, a cache and a budget."""

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
    """SHA-256 of a request in canonical form. The key does not depend on the endpoint."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Cache:
    """Cache with one file per answer. Several processes may share a folder, because files are written atomically.

    Args: folder: None disables the cache.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def get(self, key: str) -> Any:
        """The cached JSON; None if nothing is cached, or the file is truncated or broken."""
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
    """Client of an endpoint, used as `async with Client(endpoint) as client`. The counters cover all uses.

    Raises:
        ValueError: on entry, openai is not installed, or the environment variable for the key is not set.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.cache, self.budget = endpoint, Cache(endpoint.cache), Budget(endpoint)
        self.counters = self.budget.counters

    async def __aenter__(self) -> Client:
        try:
            from data_modules.feedback.providers.connection import Connection
        except ImportError as error:  # imported late, because the import takes a second or more
            raise ValueError(
                f"a judge needs the openai package: pip install 'lightning_nlf[judge]' ({error})"
            ) from None
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
        """Ask one question and return the answer, from the cache if the question was asked before.

        An answer that is empty or lacks requested log-probabilities is returned but not cached.

        Args: alternatives: number of most probable tokens, at each place, to request log-probabilities for; 0 = none.
        Raises:
            Stopped: the budget is spent, no server answers at the url, or the server requests too long a wait.
            Unanswered: all tries failed.
            ValueError: the server refuses the key, or does not have the model or the path.
        """
        body = self.endpoint.body(prompt, max_tokens, temperature, seed, alternatives)
        key = content_key(body | {"seed": seed})  # includes the seed even if it is not sent, to tell samples apart
        async with self._alone[key]:  # two identical questions at the same time cost one call
            answer = self._from_cache(key, alternatives)
            if answer is None:
                if re.search("[\ud800-\udfff]", prompt):
                    raise Unanswered("the question has half a surrogate pair, which cannot be sent")
                async with self._slots:
                    answer = await self._connection.post(body)
                if _is_whole(answer, alternatives):
                    self.cache.put(key, answer.as_json())
        self.budget.answers += 1
        self.budget.log_probs |= bool(answer.alternatives)
        return answer

    def _from_cache(self, key: str, alternatives: int) -> Answer | None:
        """The cached answer; None if there is no valid and complete answer."""
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
    """Run a coroutine from synchronous code and return its result.

    If an event loop is already running, as in a notebook, the coroutine runs in a different thread. Ctrl-C cancels the
    coroutine there too.
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
            for running_task in running:
                running_task.get_loop().call_soon_threadsafe(running_task.cancel)
            raise
