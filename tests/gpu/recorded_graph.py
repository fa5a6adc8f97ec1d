"""Stand-in for CUDA graphs on a CPU, so that the code that captures and replays a graph runs without a GPU.

Like a graph, a recording keeps operations and addresses: a replay repeats the operations on the tensors of the capture,
and runs no Python of the captured function. A value that Python has computed is therefore the same in every replay. A
read of a value by the host, which a capture forbids, raises an error. Streams do nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_nlf.language import decode_graph
from lightning_nlf.language.reader import DecoderReader

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select")


class RecordedGraph(TorchDispatchMode):
    """The operations of a capture. Used in place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in READS:
            raise RuntimeError(f"{func.name()}: the host reads a value in a capture")
        devices = {x.device for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"{func.name()}: a capture mixes {', '.join(sorted(map(str, devices)))}")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        with torch.autocast("cpu", enabled=False):  # the recorded operations include the roundings of autocast
            for func, args, kwargs, out in self.calls:
                for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # else in place, or a view
                        old.copy_(new)


class CapturedStep(decode_graph.DecodeStep):
    """A step that is captured on a CPU, too."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.capture()


@contextmanager
def recorded_graphs() -> Iterator[None]:
    """Context manager in which a CPU decodes by the code for GPUs, without the C++ kernels."""
    with (
        mock.patch.multiple(
            torch.cuda,
            CUDAGraph=RecordedGraph,
            Stream=mock.Mock(),
            current_stream=mock.Mock(),
            stream=nullcontext,
            graph=lambda recorded, **how: recorded,
        ),
        mock.patch.object(decode_graph, "DecodeStep", CapturedStep),
        mock.patch.object(decode_graph, "fits", lambda policy, logits: isinstance(policy, DecoderReader)),
        mock.patch("lightning_nlf.language.kernels.fit", lambda *x: False),
    ):
        yield
