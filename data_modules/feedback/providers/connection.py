"""Requests to an OpenAI-compatible server by openai's own client, and what its errors mean for a judge."""

from __future__ import annotations

from typing import Any

import httpx2
import openai

from data_modules.feedback.providers.answer import Answer, Unanswered
from data_modules.feedback.providers.budget import Budget
from data_modules.feedback.providers.endpoint import Endpoint
from data_modules.feedback.providers.transport import BoundedClient, NoAnswer, tries, worth_another_try

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

    async def close(self) -> None:
        await self.api.close()

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
