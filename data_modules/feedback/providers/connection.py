"""Requests to an OpenAI-compatible server by openai's client: each counted and bounded; what its errors mean."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from functools import cache
from typing import Any

import httpx2
import openai

from data_modules.feedback.providers.answer import Answer, Unanswered
from data_modules.feedback.providers.endpoint import Budget, Endpoint

LARGEST = 16 * 2**20  # bytes of an answer
PASSED_ON = ("retry-after", "retry-after-ms", "x-should-retry", "location")  # headers that are read after the body


class NoAnswer(httpx2.DecodingError):
    """A body that is no answer; openai's client tries again after it, as after any fault of the connection."""


class BoundedClient(httpx2.AsyncClient):
    """What `openai.AsyncOpenAI` sends its requests with, the tries again among them. Follows no redirection.

    Args:
        seconds: for one request, from the connection to the last byte.
        connections: at a time.
        budget: admits each request before it goes out, and reads what came back.
    """

    def __init__(self, seconds: float, connections: int, budget: Budget) -> None:
        limits = httpx2.Limits(max_connections=connections)
        super().__init__(follow_redirects=False, limits=limits, verify=_certificates())
        self.seconds, self.budget = seconds, budget

    async def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
        """The response with its whole body, and the answer in `extensions` if the status is 2xx.

        Raises:
            httpx2.RequestError: what is worth another try.
            Stopped: the budget is spent, or the server asks for too long a wait.
        """
        self.budget.admit(tries(request) > 1)
        try:
            async with asyncio.timeout(self.seconds):
                response = await super().send(request, **(how | {"stream": True}))
                try:
                    body = await _body(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx2.ReadTimeout(f"no whole answer in {self.seconds:g} seconds", request=request) from None
        status, extensions = response.status_code, dict[str, Any]()
        headers = {name: response.headers[name] for name in PASSED_ON if name in response.headers}
        if response.is_success:
            try:
                extensions["answer"] = self.budget.read(body)
            except ValueError as error:
                raise NoAnswer(f"an answer that is none: {error}", request=request) from None
        elif worth_another_try(status):
            self.budget.bear(seconds_asked(headers))
        return httpx2.Response(status, headers=headers, content=body, request=request, extensions=extensions)


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust: read once, as it takes a tenth of a second and `JudgeReward` connects for every batch."""
    return httpx2.create_ssl_context()


async def _body(response: httpx2.Response) -> bytes:
    """As it was sent: it was asked for uncompressed, so that a few bytes cannot become gigabytes."""
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise NoAnswer("an answer that is none: it is compressed, which was not asked for", request=response.request)
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > LARGEST:
            raise NoAnswer(f"an answer that is none: more than {LARGEST} bytes", request=response.request)
    return bytes(body)


def tries(request: httpx2.Request) -> int:
    """How often a question was sent, this request included, as openai's client counts."""
    return int(request.headers.get("x-stainless-retry-count", 0)) + 1


def worth_another_try(status: int) -> bool:
    """As openai's client decides: request timeout, conflict, rate limit, server errors."""
    return status in (408, 409, 429) or status >= 500


def seconds_asked(headers: Mapping[str, str]) -> float:
    """Seconds to wait by `Retry-After`: a number or a date, read as openai's client does; 0 where there is neither."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return float(headers.get(name, "")) * unit
        except ValueError:
            continue
    try:
        date = parsedate_tz(headers.get("retry-after", ""))
        return 0.0 if date is None else mktime_tz(date) - time.time()
    except (TypeError, ValueError, OverflowError, OSError):
        return 0.0


SHOWN = 300  # characters of a server's message
CONNECTING = 5.0  # seconds


class Connection:
    """`openai.AsyncOpenAI` for an endpoint: it tries again, with growing waits or as long as the server asks.

    Nothing that the environment holds for OpenAI's own server is sent: no key, organisation or project.

    Raises:
        ValueError: the environment has no key, or the url is none.
    """

    def __init__(self, endpoint: Endpoint, budget: Budget) -> None:
        self.endpoint, self.budget, key = endpoint, budget, endpoint.key()
        self.headers: dict[str, str | openai.Omit] = {
            "Authorization": f"Bearer {key}" if key else openai.Omit(),
            "OpenAI-Organization": openai.Omit(),
            "OpenAI-Project": openai.Omit(),
            "Accept-Encoding": "identity",
        }
        try:
            self.api = openai.AsyncOpenAI(
                base_url=endpoint.url,
                api_key=key or "none",
                max_retries=endpoint.retries,
                timeout=httpx2.Timeout(endpoint.timeout, connect=min(endpoint.timeout, CONNECTING)),
                http_client=BoundedClient(endpoint.timeout, endpoint.concurrency, budget),
            )
        except httpx2.InvalidURL as error:
            raise ValueError(f"endpoint.url: got {endpoint.url!r}: {error}") from None

    async def post(self, body: dict[str, Any]) -> Answer:
        """The answer to one request.

        Raises:
            Stopped: the budget is spent, nobody answers, or a wait would be too long.
            Unanswered: it failed for good.
            ValueError: the server refuses the key, or knows no such model or path.
        """
        try:
            response = await self.api.post(
                "/completions" if self.endpoint.completions else "/chat/completions",
                cast_to=httpx2.Response,
                body=body,
                options={"headers": self.headers},
            )
        except openai.APIStatusError as error:
            raise self._refusal(error.response) from None
        except openai.APIConnectionError as error:
            raise self._failure(error) from None
        return response.extensions["answer"]

    def _refusal(self, response: httpx2.Response) -> Exception:
        """Of a server that answered with another status than 2xx."""
        status, endpoint = response.status_code, self.endpoint
        reply = f"HTTP {status}: {self._shown(response.text)}"
        if status == 401 or (status == 403 and not self.budget.answers):
            return ValueError(f"endpoint.key_variable: the server refuses the key ({reply})")
        if status == 404 and not self.budget.answers:
            return ValueError(f"endpoint: {endpoint.url} or the model {endpoint.model!r} is not there ({reply})")
        if response.has_redirect_location:
            address = self._shown(response.headers["location"])
            return ValueError(f"endpoint.url: HTTP {status}, moved to {address}; the key is not sent on: give that url")
        return Unanswered(f"{reply}, {tries(response.request)} times" if worth_another_try(status) else reply)

    def _failure(self, error: openai.APIConnectionError) -> Unanswered:
        """Of a request without any response, or with one that is no answer."""
        cause = error.__cause__
        reason = self._shown(str(cause) if isinstance(cause, NoAnswer) else f"{type(cause).__name__} {cause}".strip())
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            return self.budget.stop(f"endpoint.url: nobody answers at {self.endpoint.url} ({reason})")
        return Unanswered(f"{reason}, {tries(error.request)} times")

    def _shown(self, text: str) -> str:
        """A server's words for a message: without the key, on one line, escaped, and short."""
        line = " ".join(self.endpoint.without_key(text).split())[:SHOWN]
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
