"""Fixture: an HTTP server on loopback with scripted answers."""

import asyncio
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_modules.feedback.providers.endpoint import Endpoint


def chat(text="", alternatives=(), tokens=(10, 2)):
    """JSON of a chat completion. Args: alternatives: for each token, probabilities of the most probable tokens."""
    steps = [
        {"token": max(step, key=step.get), "top_logprobs": [{"token": t, "logprob": log(p)} for t, p in step.items()]}
        for step in alternatives
    ]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return {"choices": [choice | {"logprobs": {"content": steps} if steps else None}], "usage": usage}


def completion(text="", alternatives=()):
    """JSON of a text completion."""
    steps = [{token: log(p) for token, p in step.items()} for step in alternatives]
    choice = {"index": 0, "text": text, "logprobs": {"top_logprobs": steps} if steps else None}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}


def log(p):
    return math.log(p) if p else -9999.0  # as servers write it


class Fault:
    """Faulty answer: a status, an invalid body, a dropped connection, or an answer that comes too late.

    `cut` closes the connection after this many bytes of the body; `stall` leaves it open there; `drip` sends one byte
    at this interval in seconds for ever.
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
            answer = server.answer(body)
        if isinstance(answer, Fault) and (answer.hang or answer.drop):
            if answer.hang:
                server.released.wait(30)
            self.close_connection = True
            return
        fault = answer if isinstance(answer, Fault) else Fault(body=json.dumps(answer))
        content = fault.body if isinstance(fault.body, bytes) else fault.body.encode()
        self.send_response(fault.status)
        for name, value in {"Content-Length": str(len(content)), **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self._write(content, fault, server)
        except (BrokenPipeError, ConnectionResetError):  # the client has closed the connection
            self.close_connection = True

    def do_GET(self):  # a client that follows a redirect may send GET
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
    """Scripted server: `answer(body)` gives its answers; `requests` holds the received bodies."""

    chat, completion, Fault = staticmethod(chat), staticmethod(completion), Fault

    def __init__(self):
        self.requests, self.paths, self.headers = [], [], []
        self.answer = lambda body: chat("1")
        self.lock, self.released = threading.Lock(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.script, self.server.daemon_threads = self, True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def says(self, *answers):
        """Give these answers in order, then repeat the last one."""
        left = list(answers)
        self.answer = lambda body: left.pop(0) if len(left) > 1 else left[0]


def asked_of(body):
    return body["prompt"] if "prompt" in body else body["messages"][0]["content"]


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Waits of the openai client before its retries, recorded without waiting. No proxy is used."""
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
    """Factory of endpoints for the server."""

    def make(**knobs):
        defaults = {"url": server.url, "model": "judge", "cache": str(tmp_path / "cache"), "timeout": 5.0}
        return Endpoint(**(defaults | knobs))

    return make


@pytest.fixture
def prompt_of():
    """Function that returns the prompt of a request."""
    return asked_of
