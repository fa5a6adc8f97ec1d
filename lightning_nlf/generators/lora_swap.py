"""LoRA adapters on a generation server: each version is written to a folder and loaded under a name of its own."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning_nlf.generators.completions import Served
from lightning_nlf.generators.server import GeneratorStopped, Refused, Server
from lightning_nlf.networks import Policy
from lightning_nlf.networks.bases import Base


@runtime_checkable
class Adapted(Protocol):
    """A policy that can write its LoRA adapter."""

    base: Base | None  # base model of the adapter; None without LoRA, or if the base model has no name

    def export_adapter(self, folder: str | Path) -> None: ...


class LoRASwap:
    """A `WeightSync` that writes the policy's LoRA adapter to a folder and loads it on the server.

    Every version has a new name, so the server never answers by an older version, and never reuses its keys and values:
    vLLM's prefix cache has the adapter's name in its keys. The older version is unloaded and deleted.

    Args:
        server: the server, started with `--enable-lora`, and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1` in its environment.
        folder: a folder that this process and the server both see under this path; by default a temporary folder, for a
            server of the same user on the same machine.

    Raises:
        ValueError: in `push`, the policy has no LoRA adapter of a model folder, or the server loads no adapters.
    """

    def __init__(self, server: Server, folder: str | None = None) -> None:
        self.server, self.count = server, 0
        self.prefix = f"lightning-nlf-{secrets.token_hex(4)}"  # unlike the names of an earlier process
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._current: Path | None = None

    def push(self, policy: Policy) -> Served:
        """`WeightSync.push`."""
        if not isinstance(policy, Adapted) or policy.base is None:
            raise ValueError(
                "sync: lora needs a policy with a LoRA adapter on a model folder; set policy.lora and policy.weights, "
                "or sync: transfer"
            )
        self.close()
        self.count += 1
        path = self._place() / f"{self.prefix}-{self.count}"
        policy.export_adapter(path)
        self._current = path
        self._load(path)
        self._reset()
        return Served(path.name)

    def close(self) -> None:
        """`WeightSync.close`."""
        if self._current is not None:
            with contextlib.suppress(GeneratorStopped):  # a server that was started again does not have it
                self.server.post("/unload_lora_adapter", {"lora_name": self._current.name})
            shutil.rmtree(self._current, ignore_errors=True)
            self._current = None

    def _place(self) -> Path:
        if self._folder is not None:
            return Path(self._folder).resolve()
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="lightning-nlf-adapters-")
        return Path(self._temporary.name)

    def _load(self, path: Path) -> None:
        try:
            self.server.post("/load_lora_adapter", {"lora_name": path.name, "lora_path": str(path)})
        except Refused as refused:
            if refused.status == 400 and "already been loaded" in refused.text:  # a retry after a lost answer
                return
            if refused.status == 404 and "adapter" not in refused.text:
                raise ValueError(
                    f"url: {self.server.url} loads no adapters; start it with --enable-lora and with "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
                ) from refused
            raise

    def _reset(self) -> None:
        """Empty the prefix cache, if the server has the route for it. Entries of other adapters are not used anyway."""
        with contextlib.suppress(Refused):
            self.server.post(f"{self.server.root}/reset_prefix_cache")
