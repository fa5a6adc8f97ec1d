"""HTTP client of a generation server: JSON requests with a time limit and retries, by the openai package."""

from __future__ import annotations

import json
import os
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

CONNECTING = 5.0  # time limit of a connection in seconds
LONGEST_EXCERPT = 300  # characters of a server's message


class GeneratorStopped(RuntimeError):
    """The generation server does not answer, or its answer cannot be used. The run ends, and can be resumed."""


class Refused(GeneratorStopped):
    """The server answered with an error status.

    Attributes: status: the HTTP status; text: the server's message.
    """

    def __init__(self, message: str, status: int, text: str) -> None:
        super().__init__(message)
        self.status, self.text = status, text


class Server:
    """Connection to a server with vLLM's API. All methods can be called from several threads.

    Args:
        url: the part before `/completions`, such as `http://127.0.0.1:8000/v1`.
        key_variable: environment variable with the API key, if the server has `--api-key`.
        timeout: time limit of one request in seconds, without progress.
        retries: number of retries after 408, 409, 429, 5xx, a timeout or a connection error. The openai client waits ½,
            1, 2, 4, then 8 seconds between tries, with jitter, or as long as Retry-After says.
        concurrency: number of simultaneous requests.

    The environment variables `HTTP_PROXY` and `NO_PROXY` apply.

    Raises:
        ValueError: the url is invalid; when first used: openai is not installed, or the key is not set.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000/v1",
        key_variable: str | None = None,
        timeout: float = 600.0,
        retries: int = 5,
        concurrency: int = 64,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: got {url!r}, must be an address such as http://127.0.0.1:8000/v1")
        if "@" in parts.netloc:
            raise ValueError("url: includes a password and would be saved with runs; use key_variable instead")
        self.url, self.key_variable = url.rstrip("/"), key_variable
        self.timeout, self.retries, self.concurrency = timeout, retries, concurrency

    @property
    def root(self) -> str:
        """The address without `/v1`, below which vLLM has its control routes."""
        return self.url.removesuffix("/v1")

    def get(self, path: str) -> Any:
        """As `post`, without a body."""
        return self._ask("get", path)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a JSON request, and return the JSON of the answer, or its text if it is not JSON.

        Args: path: below `url`, such as `/completions`, or a whole address.
        Raises:
            Refused: the server answers with a status other than 2xx, after all retries.
            GeneratorStopped: no answer, after all retries.
            ValueError: the server refuses the key.
        """
        return self._ask("post", path, body=body or {})

    def _ask(self, method: str, path: str, **how: Any) -> Any:
        api = self._api
        import httpx2
        import openai

        try:
            send = getattr(api, method)
            response = send(path, cast_to=httpx2.Response, options={"headers": self._headers()}, **how)
        except openai.APIStatusError as error:
            raise self._refusal(path, error.response.status_code, error.response.text) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reason = self._excerpt(f"{type(cause).__name__} {cause}".strip())
            raise GeneratorStopped(
                f"generation server: no answer from {self.url} after {self.retries + 1} tries ({reason}); "
                "start it again, and resume the run"
            ) from None
        try:
            return json.loads(response.content)
        except ValueError:
            return response.text

    def _refusal(self, path: str, status: int, text: str) -> Exception:
        if status in (401, 403):
            return ValueError(f"key_variable: {self.url} refuses the key (HTTP {status}: {self._excerpt(text)})")
        where = path if path.startswith("http") else self.url + path
        return Refused(f"generation server: {where}: HTTP {status}: {self._excerpt(text)}", status, text)

    @cached_property
    def _api(self) -> Any:
        try:
            import httpx2
            import openai
        except ImportError:
            raise ValueError("url: openai is not installed; run pip install lightning_nlf[judge]") from None
        return openai.OpenAI(
            base_url=self.url,
            api_key=self._key() or "none",
            max_retries=self.retries,
            timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, CONNECTING)),
            http_client=httpx2.Client(follow_redirects=False, limits=httpx2.Limits(max_connections=self.concurrency)),
        )

    def _headers(self) -> dict[str, Any]:
        """Never the organisation or project that environment variables hold for OpenAI's own server."""
        import openai

        key = self._key()
        return {
            "Authorization": f"Bearer {key}" if key else openai.Omit(),
            "OpenAI-Organization": openai.Omit(),
            "OpenAI-Project": openai.Omit(),
        }

    def _key(self) -> str | None:
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ValueError(f"key_variable: the environment variable {self.key_variable} is not set; export it")
        return key

    def _excerpt(self, text: str) -> str:
        """Make a server's text fit for a message: without the key, on one line, escaped, and short."""
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        line = " ".join((text.replace(key, "…") if key else text).split())[:LONGEST_EXCERPT]
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
