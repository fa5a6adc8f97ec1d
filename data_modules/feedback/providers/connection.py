"""Requests to an OpenAI-compatible server with the openai package, with a budget and limits on size and time."""

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

LARGEST = 16 * 2**20  # maximum size of an answer in bytes
PASSED_ON = (
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "location",
)  # headers that are used after the body has been read


class NoAnswer(httpx2.DecodingError):
    """The body is not an answer. The openai client retries, as after any connection error."""


class BoundedClient(httpx2.AsyncClient):
    """HTTP client for `openai.AsyncOpenAI` that counts and limits each request, including retries.

    The client does not follow redirects.

    Args:
        seconds: time limit of one request, from the connection to the last byte.
        connections: number of simultaneous connections.
        budget: budget that admits each request before it is sent, and is charged for the response.
    """

    def __init__(self, seconds: float, connections: int, budget: Budget) -> None:
        limits = httpx2.Limits(max_connections=connections)
        super().__init__(follow_redirects=False, limits=limits, verify=_certificates())
        self.seconds, self.budget = seconds, budget

    async def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
        """Send a request; return the response with its full body, and if the status is 2xx, the answer in `extensions`.

        Raises:
            httpx2.RequestError: the request failed and can be retried.
            Stopped: the budget is spent, or the server requests too long a wait.
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
            raise httpx2.ReadTimeout(f"no complete answer within {self.seconds:g} seconds", request=request) from None
        status, extensions = response.status_code, dict[str, Any]()
        headers = {name: response.headers[name] for name in PASSED_ON if name in response.headers}
        if response.is_success:
            try:
                extensions["answer"] = self.budget.read(body)
            except ValueError as error:
                raise NoAnswer(f"invalid answer: {error}", request=request) from None
        elif worth_another_try(status):
            self.budget.bear(seconds_asked(headers))
        return httpx2.Response(status, headers=headers, content=body, request=request, extensions=extensions)


@cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates; cached, because reading takes 0.1 s and `JudgeReward` connects for every batch."""
    return httpx2.create_ssl_context()


async def _body(response: httpx2.Response) -> bytes:
    """Read the body of a response. It must be uncompressed, so that a few bytes cannot expand to gigabytes."""
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise NoAnswer("invalid answer: it is compressed, although the request forbids it", request=response.request)
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > LARGEST:
            raise NoAnswer(f"invalid answer: more than {LARGEST} bytes", request=response.request)
    return bytes(body)


def tries(request: httpx2.Request) -> int:
    """Number of tries of a question, including this request, as counted by the openai client."""
    return int(request.headers.get("x-stainless-retry-count", 0)) + 1


def worth_another_try(status: int) -> bool:
    """Whether the openai client retries after a status: request timeout, conflict, rate limit or server error."""
    return status in (408, 409, 429) or status >= 500


def seconds_asked(headers: Mapping[str, str]) -> float:
    """Seconds to wait by `Retry-After`, a number or a date, as the openai client reads it; 0 without either."""
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


SHOWN = 300  # maximum number of characters of a server's message
CONNECTING = 5.0  # timeout of the connection in seconds


class Connection:
    """`openai.AsyncOpenAI` for an endpoint. It retries after growing waits, or after the wait that the server requests.

    The connection never sends the key, organisation or project that environment variables hold for OpenAI's own server.

    Raises:
        ValueError: the environment variable for the key is not set, or the url is invalid.
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
        """Send one request and return the answer.

        Raises:
            Stopped: the budget is spent, no server answers, or a wait would be too long.
            Unanswered: all tries failed.
            ValueError: the server refuses the key, or does not have the model or path.
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
        """The exception for a response with a status other than 2xx."""
        status, endpoint = response.status_code, self.endpoint
        reply = f"HTTP {status}: {self._excerpt(response.text)}"
        if status == 401 or (status == 403 and not self.budget.answers):
            return ValueError(f"endpoint.key_variable: the server refuses the key ({reply})")
        if status == 404 and not self.budget.answers:
            return ValueError(f"endpoint: {endpoint.url} or its model {endpoint.model!r} does not exist ({reply})")
        if response.has_redirect_location:
            address = self._excerpt(response.headers["location"])
            return ValueError(
                f"endpoint.url: HTTP {status}, moved to {address}; redirects are not followed, to protect the key: "
                "use that url"
            )
        return Unanswered(f"{reply}, {tries(response.request)} times" if worth_another_try(status) else reply)

    def _failure(self, error: openai.APIConnectionError) -> Unanswered:
        """The exception for a request that got no response, or an invalid response."""
        cause = error.__cause__
        reason = self._excerpt(str(cause) if isinstance(cause, NoAnswer) else f"{type(cause).__name__} {cause}".strip())
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            return self.budget.stop(f"endpoint.url: no server answers at {self.endpoint.url} ({reason})")
        return Unanswered(f"{reason}, {tries(error.request)} times")

    def _excerpt(self, text: str) -> str:
        """Make text from a server fit for a message: without the key, on one line, escaped, and short."""
        line = " ".join(self.endpoint.without_key(text).split())[:SHOWN]
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
