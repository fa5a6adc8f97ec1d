"""One part of `one_gpu.py`, in this process: decoding with and without CUDA graphs, or a fit.

`python tests/gpu/one_part.py PART OUT [--weights FOLDER] [--cpu]` writes the figures of PART to the JSON file OUT.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
import torch

from lightning_nlf.language import decode_graph, generation
from lightning_nlf.modules.memory_estimate import BYTES, TrainingMemory
from lightning_nlf.networks import DecoderShape, TransformerPolicy
from tests.gpu import fits
from tests.gpu.recorded_graph import recorded_graphs

LLAMA = {"family": "llama", "context": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "124M": {"vocabulary": 50257, "layers": 12, "heads": 12, "width": 768, "context": 1024},
    "135M": LLAMA | {"vocabulary": 49152, "layers": 30, "heads": 9, "kv_heads": 3, "width": 576, "hidden": 1536},
    "1B": LLAMA | {"vocabulary": 128256, "layers": 16, "heads": 32, "kv_heads": 8, "width": 2048, "hidden": 8192},
}
TINY = {"vocabulary": 512, "layers": 2, "heads": 4, "width": 64, "hidden": 96, "context": 512}
ROWS, PROMPT, REPLY, REPEATS = 64, 64, 128, 5  # of decoding
ROW = 512  # tokens in a row of training, at most


def shape_of(size: str, cpu: bool) -> dict[str, Any]:
    """Shape of a model, or a tiny one of its family. Narrow models with larger weights are surer of their tokens."""
    shape = SHAPES[size]
    shape = shape if not cpu else TINY | ({"family": "llama", "kv_heads": 2} if "family" in shape else {})
    return shape | {"init_std": shape["width"] ** -0.5}


def bytes_needed(part: str, cpu: bool = False) -> int:
    """Bytes of a part, from its shape on the meta device. Tends to be too low.

    Decoding needs the weights in float32 and in bf16, and two caches in bf16: of the prompt, and of the graph. Training
    needs weights, gradients, Adam's moments, a reference, and the activations of the rows that are read at a time.
    """
    kind, size, *lora = part.split("-")
    shape = DecoderShape(**shape_of(size, cpu))
    with torch.device("meta"):
        policy = TransformerPolicy(shape)
    weights = sum(p.numel() for p in policy.parameters())
    if kind == "decode":
        cache = shape.layers * ROWS * 2 * shape.kv_heads * (PROMPT + REPLY) * shape.head_width
        return 6 * weights + 2 * 2 * cache
    training = TrainingMemory.of([policy.requires_grad_(not lora)], fits.ROWS, ROW)
    return training.total + (0 if lora else BYTES * weights)


def decode(size: str, weights: str | None, cpu: bool) -> dict[str, Any]:
    """Greedy replies with CUDA graphs and without: rows that are equal in float32, tokens/s and peak memory in bf16."""
    device = "cpu" if cpu else "cuda"
    rows, prompt, new = (4, 8, 20) if cpu else (ROWS, PROMPT, REPLY)
    torch.manual_seed(0)
    with torch.device("cpu" if weights else device):  # random weights are drawn on the GPU, to save time
        shape = None if weights else DecoderShape(**shape_of(size, cpu))
        policy = TransformerPolicy(shape, weights)
    policy.eval().to(device)
    ids = torch.randint(policy.vocabulary, (rows, prompt), device=device)
    lengths = torch.randint(prompt // 2, prompt + 1, (rows,), device=device)

    def replies(graph: bool, count: int, half: bool) -> torch.Tensor:
        on: AbstractContextManager[Any] = mock.patch.object(decode_graph, "fits", lambda *x: False)
        on = on if not graph else recorded_graphs() if cpu else nullcontext()
        sampling = {"stop": (-1,), "max_new": new, "deterministic": True}  # no stop token, so that replies are long
        with on, torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half):
            tokens, *_ = generation.reply(policy, ids[:count], lengths[:count], **sampling)
        return tokens.cpu()

    speeds: dict[str, list[float]] = {}
    peaks: dict[str, int | None] = {}
    for name, graph in (("without graphs", False), ("with graphs", True)):  # in this order, because graphs keep memory
        if not cpu:
            torch.cuda.reset_peak_memory_stats()
        replies(graph, rows, True)  # the capture, and choices of libraries
        speeds[name] = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            replies(graph, rows, True)
            speeds[name].append(rows * new / (time.perf_counter() - began))
        peaks[name] = None if cpu else torch.cuda.max_memory_allocated()
    few = min(rows, 8)
    equal = [torch.equal(*pair) for pair in zip(*(replies(graph, few, False) for graph in (True, False)), strict=True)]
    figures = {"tokens_per_second": speeds, "peak_bytes": peaks, "precision": "bf16-mixed"}
    figures["equal_rows_float32"] = f"{sum(equal)} of {few}"
    return figures


def run_part(part: str, weights: str | None, cpu: bool) -> dict[str, Any]:
    """Figures of one part, or why it was skipped."""
    kind, size, *lora = part.split("-")
    free = psutil.virtual_memory().available if cpu else torch.cuda.mem_get_info()[0]
    if (needed := bytes_needed(part, cpu)) > free:
        return {"skipped": f"needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"}
    weights = weights if size == "135M" else None
    if kind == "decode":
        return decode(size, weights, cpu)
    return fits.fit(kind, bool(lora), weights, shape_of(size, cpu), cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part")
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    options.out.write_text(json.dumps(run_part(options.part, options.weights, options.cpu)))


if __name__ == "__main__":
    main()
