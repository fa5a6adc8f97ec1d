"""All weights of a policy to a generation server, by vLLM's NCCL weight transfer."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lightning_nlf.generators.completions import Served
from lightning_nlf.generators.server import GeneratorStopped, Server
from lightning_nlf.networks import Policy


@runtime_checkable
class Named(Protocol):
    """A policy whose weights have names in the Hugging Face layout."""

    def named_weights(self) -> Iterator[tuple[str, Tensor]]: ...


class WeightTransfer:
    """A `WeightSync` that overwrites the server's weights in place, from GPU to GPU by NCCL.

    Each update pauses the server, sends all tensors, labels the weights, empties the prefix cache (vLLM does not do so
    itself), and resumes. Answers carry the label, so a reply by older weights is refused. For one training process.

    This class follows the API of vLLM 0.33 (`vllm.distributed.weight_transfer`). It has been tested against a stand-in
    for that module, and not on GPUs.

    Args:
        server: the server, started with `--weight-transfer-config '{"backend": "nccl"}'`, and `VLLM_SERVER_DEV_MODE=1`
            in its environment. That variable opens routes that control the server: bind it to loopback.
        model: the model's name on the server.
        address, port: where the server's processes meet the trainer for NCCL.

    Raises:
        ValueError: in `push`, vllm 0.33 is not installed in this environment, or the policy has LoRA or no such names.
    """

    def __init__(self, server: Server, model: str, address: str = "127.0.0.1", port: int = 51216) -> None:
        self.server, self.model, self.address, self.port = server, model, address, port
        self.count, self.prefix = 0, f"lightning-nlf-{secrets.token_hex(4)}"
        self._engine: Any = None

    def push(self, policy: Policy) -> Served:
        """`WeightSync.push`."""
        root, self.count = self.server.root, self.count + 1
        if self._engine is None:
            self._engine = self._connect(policy)
        version = f"{self.prefix}-{self.count}"
        self.server.post(f"{root}/pause?mode=wait")
        try:
            self._engine.send_weights()
        except Exception as error:  # of NCCL, requests or vllm
            raise GeneratorStopped(f"generation server: the weights were not sent: {error}") from error
        self.server.post(f"{root}/update_weight_version", {"new_version": version})
        if self.server.post(f"{root}/reset_prefix_cache") != {"success": True}:
            raise GeneratorStopped("generation server: the prefix cache was not emptied, so replies would be wrong")
        self.server.post(f"{root}/resume")
        return Served(self.model, version)

    def close(self) -> None:
        """`WeightSync.close`."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()

    def _connect(self, policy: Policy) -> Any:
        if not isinstance(policy, Named) or policy.base is not None:
            raise ValueError("sync: transfer needs a TransformerPolicy or HuggingFacePolicy without lora")
        try:
            from vllm.distributed.weight_transfer import (
                HTTPVLLMWeightSyncClient,
                WeightSource,
                WeightTransferTrainerFactory,
            )
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        except ImportError as error:
            raise ValueError(
                f"sync: transfer needs vllm in the trainer's environment too ({error}); pip install vllm, or train a "
                "LoRA adapter with sync: lora"
            ) from None
        if not hasattr(WeightSource, "iter_full"):
            raise ValueError("sync: transfer needs vllm 0.33 or later, which changed its interface; upgrade it")
        workers = self.server.get(f"{self.server.root}/get_world_size")["world_size"]
        meeting = NCCLTrainerInitInfo(self.address, self.port, 1 + workers, rank=0)
        client = HTTPVLLMWeightSyncClient(self.server.root, timeout=self.server.timeout)
        return WeightTransferTrainerFactory.trainer_init(meeting, client=client, source=source_of(policy))


def source_of(policy: Named) -> Any:
    """The policy's weights as a `WeightSource` of vllm, which must be importable."""
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    class PolicySource(WeightSource):
        @cached_property
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, x.dtype, tuple(x.shape)) for name, x in policy.named_weights()]

        def iter_full(self) -> Iterator[tuple[str, Tensor]]:
            for name, x in policy.named_weights():
                yield name, x.detach().contiguous()

    return PolicySource()
