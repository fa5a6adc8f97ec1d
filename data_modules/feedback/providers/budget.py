"""What a judge may cost and has cost: requests, tokens, and seconds that a server wants to be waited for."""

from __future__ import annotations

from data_modules.feedback.providers.answer import Answer, Unanswered, parsed, token_counts
from data_modules.feedback.providers.endpoint import Endpoint


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
