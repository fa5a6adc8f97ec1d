"""Fixtures: a tiny LoRA policy, and a server on loopback that has vLLM's routes and samples from a policy's copy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_nlf.generators import LoRASwap, Server, VLLMReplier
from lightning_nlf.language import generation
from lightning_nlf.networks import DecoderShape, LoRA, TransformerPolicy

Answer = tuple[int, Any]  # status and JSON


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: FakeVLLM = self.server.fake  # type: ignore[attr-defined]
        server.headers.append(dict(self.headers))
        answer = server.answer(self.path, body)
        if answer is None:  # the connection is dropped
            self.close_connection = True
            return
        status, content = answer
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        if status == 307:
            self.send_header("Location", server.url + "/elsewhere")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        pass


class FakeVLLM:
    """The routes of vLLM that are used, with a policy of our own in place of the engine.

    Attributes:
        network: the server's base model with an adapter, which `/load_lora_adapter` overwrites.
        requests: path and body of every request, in order.
        faults: answers to the next completions, before the true ones; None drops the connection.
        change: applied to every true answer of a completion.
    """

    def __init__(self, network: TransformerPolicy) -> None:
        self.network, self.lock = network, threading.Lock()
        self.adapters: list[str] = []
        self.headers: list[dict[str, str]] = []  # of every request
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[Answer | None] = []
        self.dead_after: int | None = None  # number of completions after which every connection is dropped
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.fake, self.http.daemon_threads = self, True  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def bodies(self, end: str) -> list[dict[str, Any]]:
        return [body for path, body in self.requests if path.endswith(end)]

    def answer(self, path: str, body: dict[str, Any]) -> Answer | None:
        with self.lock:
            self.requests.append((path, body))
            if self.dead_after is not None and len(self.bodies("/completions")) > self.dead_after:
                return None
            if path == "/v1/load_lora_adapter":
                return self.load(body["lora_name"], Path(body["lora_path"]))
            if path == "/v1/unload_lora_adapter":
                self.adapters.remove(body["lora_name"])
                return 200, "Success"
            if path == "/reset_prefix_cache":
                return 200, {"success": True}
            assert path == "/v1/completions", path
            return self.faults.pop(0) if self.faults else (200, self.change(self.completion(body)))

    def load(self, name: str, folder: Path) -> Answer:
        if name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        tensors = load_file(folder / "adapter_model.safetensors")
        for key, x in tensors.items():
            *_, layer, _, part, matrix, _ = key.split(".")
            additions = getattr(self.network.decoder.blocks[int(layer)].qkv, matrix)
            additions[part].data.copy_(x)
        self.adapters.append(name)
        return 200, "Success"

    @torch.no_grad()
    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = torch.tensor([body["prompt"]])
        tokens, log_probs, counts, _ = generation.reply(
            self.network, prompt, torch.tensor([prompt.shape[1]]), stop=body["stop_token_ids"],
            max_new=body["max_tokens"], copies=body["n"], seeds=body["seed"] + torch.arange(body["n"]),
            top_k=max(body["top_k"], 0), top_p=body["top_p"], temperature=body["temperature"] or 1.0,
            deterministic=body["temperature"] == 0,
        )  # fmt: skip
        choices = [
            {
                "index": i,
                "token_ids": row[:count],
                "prompt_token_ids": body["prompt"],
                "logprobs": {"token_logprobs": chances[:count]},
                "finish_reason": "stop" if row[count - 1] in body["stop_token_ids"] else "length",
            }
            for i, (row, chances, count) in enumerate(
                zip(tokens.tolist(), log_probs.tolist(), counts.tolist(), strict=True)
            )
        ]
        return {"model": body["model"], "choices": choices[::-1]}  # the order of choices means nothing


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits of the openai client before its retries, recorded without waiting. No proxy is used."""
    seconds: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", seconds.append)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return seconds


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model folder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    shape = DecoderShape(vocabulary=12, layers=2, heads=2, width=16, context=32, family="llama", init_std=0.5)
    TransformerPolicy(shape).export(path)
    return str(path)


@pytest.fixture
def change() -> Callable[[TransformerPolicy, int], None]:
    """Overwrites an adapter by random numbers that depend on the seed."""

    def overwrite(network: TransformerPolicy, seed: int) -> None:
        torch.manual_seed(seed)
        for x in network.parameters():
            if x.requires_grad:
                torch.nn.init.normal_(x, std=0.5)

    return overwrite


@pytest.fixture
def policy(folder: str, change: Callable[[TransformerPolicy, int], None]) -> TransformerPolicy:
    """A LoRA policy whose adapter is not zero."""
    network = TransformerPolicy(weights=folder, lora=LoRA(r=2)).eval()
    change(network, 1)
    return network


@pytest.fixture
def fake(folder: str) -> Iterator[FakeVLLM]:
    server = FakeVLLM(TransformerPolicy(weights=folder, lora=LoRA(r=2)).eval())
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def replier(fake: FakeVLLM) -> VLLMReplier:
    server = Server(fake.url, timeout=5.0, retries=2)
    return VLLMReplier(server, LoRASwap(server))
