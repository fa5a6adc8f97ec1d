"""A real server on loopback that says what a script tells it to."""

import asyncio
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_modules.feedback.providers.endpoint import Endpoint


def chat(text="", alternatives=(), tokens=(10, 2)):
    """The JSON of a chat completion; alternatives: of each token the probabilities of the likeliest, by token."""
    steps = [
        {"token": max(step, key=step.get), "top_logprobs": [{"token": t, "logprob": log(p)} for t, p in step.items()]}
        for step in alternatives
    ]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return {"choices": [choice | {"logprobs": {"content": steps} if steps else None}], "usage": usage}


def completion(text="", alternatives=()):
    """That of a text completion."""
    steps = [{token: log(p) for token, p in step.items()} for step in alternatives]
    choice = {"index": 0, "text": text, "logprobs": {"top_logprobs": steps} if steps else None}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}


def log(p):
    return math.log(p) if p else -9999.0  # as servers write it


class Fault:
    """Instead of an answer: a status, a body that is no JSON, a connection that breaks, or none that comes in time.

    `cut` ends the connection after so many bytes of the body, `stall` leaves it open there, `drip` sends one byte of it
    every so many seconds for ever.
    """

    def __init__(self, status=200, body="", headers=(), drop=False, hang=False, cut=None, stall=None, drip=None):
        self.status, self.body, self.headers, self.drop, self.hang = status, body, dict(headers), drop, hang
        self.cut, self.stall, self.drip = cut, stall, drip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server.script
        with server.lock:
            server.requests.append(body)
            server.paths.append(self.path)
            server.headers.append(self.headers)
            said = server.answer(body)
        if isinstance(said, Fault) and (said.hang or said.drop):
            if said.hang:
                server.released.wait(30)
            self.close_connection = True
            return
        fault = said if isinstance(said, Fault) else Fault(body=json.dumps(said))
        content = fault.body if isinstance(fault.body, bytes) else fault.body.encode()
        self.send_response(fault.status)
        for name, value in {"Content-Length": str(len(content)), **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self._write(content, fault, server)
        except (BrokenPipeError, ConnectionResetError):  # the client has heard enough
            self.close_connection = True

    def do_GET(self):  # what a redirection that is followed may become
        self.server.script.paths.append(self.path)
        self.send_error(404)

    def _write(self, content, fault, server):
        if fault.drip is not None:
            while not server.released.wait(fault.drip):
                self.wfile.write(b" ")
        elif fault.cut is None and fault.stall is None:
            self.wfile.write(content)
        else:
            self.wfile.write(content[: fault.cut or fault.stall])
            if fault.stall is not None:
                server.released.wait(30)
            self.close_connection = True

    def log_message(self, *args):
        pass


class Script:
    """`answer(body)` is what it says; `requests` is what it was asked."""

    chat, completion, Fault = staticmethod(chat), staticmethod(completion), Fault

    def __init__(self):
        self.requests, self.paths, self.headers = [], [], []
        self.answer = lambda body: chat("1")
        self.lock, self.released = threading.Lock(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.script, self.server.daemon_threads = self, True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def says(self, *answers):
        """One after the other, the last of them from then on."""
        left = list(answers)
        self.answer = lambda body: left.pop(0) if len(left) > 1 else left[0]


def asked_of(body):
    return body["prompt"] if "prompt" in body else body["messages"][0]["content"]


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that openai's client would have waited before each try again: nobody waits here. No proxy is asked."""
    seconds = []

    async def sleep(delay):
        seconds.append(delay)
        await asyncio.sleep(0)

    monkeypatch.setattr("anyio.sleep", sleep)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return seconds


@pytest.fixture
def server():
    script = Script()
    thread = threading.Thread(target=script.server.serve_forever, args=(0.01,))
    thread.start()
    yield script
    script.released.set()
    script.server.shutdown()
    thread.join()
    script.server.server_close()


@pytest.fixture
def endpoint(server, tmp_path):
    """Makes an endpoint of the server."""

    def make(**knobs):
        own = {"url": server.url, "model": "judge", "cache": str(tmp_path / "cache"), "timeout": 5.0}
        return Endpoint(**(own | knobs))

    return make


@pytest.fixture
def prompt_of():
    """What a request asks, as text."""
    return asked_of
