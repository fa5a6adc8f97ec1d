"""FSDP2 on two or more GPUs, by one command: `python tests/gpu/fsdp.py`. Takes about five minutes.

Trains a small model by DDP and by FSDP2 over NCCL, and compares weights, memory and checkpoints. Then trains a larger
model by FSDP2 and PPO, and prints tokens/s and peak memory. Not run so far: nobody had two GPUs at hand. Reports each
check, and exits with code 1 if one fails.

`--cpu` runs the same code on two CPU ranks with gloo and tiny models, to find mistakes in the script itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed

from data_modules.offline import OfflineDataModule, save_batch
from data_modules.text import PositiveReviews, TextDataModule, WordTokenizer
from lightning_nlf.checkpoint_io import RunCheckpointIO
from lightning_nlf.networks import DecoderShape, TransformerPolicy, TransformerValue
from lightning_nlf.objectives import DPOPolicy, ImitationPolicy, RLHFAgent
from tests.test_scale_text import PPO, judged_replies

SMALL = {"vocabulary": 288, "layers": 4, "heads": 4, "width": 256, "context": 128, "family": "llama"}
LARGE = {"vocabulary": 32_000, "layers": 16, "heads": 16, "width": 2048, "context": 1024, "family": "llama"}  # 1B
TINY = SMALL | {"layers": 2, "width": 32}
FOLDER = Path(tempfile.gettempdir()) / "lightning_nlf_fsdp"  # the same on all ranks


def slowly(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-5)


def policy(shape: dict[str, Any], **knobs: Any) -> TransformerPolicy:
    return TransformerPolicy(DecoderShape(**shape), **knobs)


def replies(shape: dict[str, Any], prompts: int, new: int) -> TextDataModule:
    return TextDataModule(
        PositiveReviews(), prompts=prompts, tokenizer=WordTokenizer(), replies=2, max_new=new, context=shape["context"]
    )


class Check:
    """Trains with each strategy, and prints results on rank 0."""

    def __init__(self, cpu: bool) -> None:
        self.cpu, self.failed = cpu, False
        self.ranks = 2 if cpu else torch.cuda.device_count()

    def fit(
        self, module: Any, data: Any, strategy: str, epochs: int = 2, precision: Any = "32-true", **knobs: Any
    ) -> L.Trainer:
        divided = ModelParallelStrategy(self.ranks, 1, save_distributed_checkpoint=False)
        trainer = L.Trainer(
            accelerator="cpu" if self.cpu else "gpu",
            devices=self.ranks,
            strategy=divided if strategy == "fsdp" else strategy,
            precision=precision,
            max_epochs=epochs,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[RunCheckpointIO()],
        )
        if not self.cpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.fit(module, data, weights_only=True, **knobs)
        return trainer

    def say(self, line: str) -> None:
        if int(distributed.get_rank()) == 0:
            print(line, flush=True)

    def expect(self, claim: str, holds: bool) -> None:
        self.failed |= not holds
        self.say(f"{'ok    ' if holds else 'FAILED'} {claim}")

    @property
    def peak(self) -> str:
        return "not measured on a CPU" if self.cpu else f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def same_weights(check: Check, name: str, make: Any, data: Any) -> None:
    """Two epochs by DDP and by FSDP2 must end alike; so must FSDP2 that is resumed after the first."""
    states = {}
    for strategy in ("ddp", "fsdp"):
        torch.manual_seed(0)
        trainer = check.fit(make(), data(), strategy)
        trainer.save_checkpoint(FOLDER / f"{name}-{strategy}.ckpt")
        check.say(f"       {name}, {strategy}: peak memory {check.peak}")
    torch.manual_seed(0)
    check.fit(make(), data(), "fsdp", 1).save_checkpoint(FOLDER / "half.ckpt")
    torch.manual_seed(0)
    trainer = check.fit(make(), data(), "fsdp", 2, ckpt_path=FOLDER / "half.ckpt")
    trainer.save_checkpoint(FOLDER / f"{name}-resumed.ckpt")
    trainer.strategy.barrier()
    for how in ("ddp", "fsdp", "resumed"):
        content = torch.load(FOLDER / f"{name}-{how}.ckpt", map_location="cpu", weights_only=True)
        states[how] = torch.cat([x.flatten().float() for x in content["state_dict"].values()])
    for how in ("fsdp", "resumed"):
        furthest = float((states[how] - states["ddp"]).abs().max())
        check.expect(f"{name}, {how}: the weights are DDP's (furthest {furthest:.1e})", furthest < 1e-3)


def large(check: Check) -> None:
    """PPO of a model of 1B parameters: speed and peak memory."""
    shape = TINY if check.cpu else LARGE
    value = TransformerValue(DecoderShape(**shape), checkpoint_activations=True)
    module = RLHFAgent(policy=policy(shape, checkpoint_activations=True), value=value, optimizer=adam, **PPO)
    data = replies(shape, prompts=4 if check.cpu else 64, new=8 if check.cpu else 128)
    began = time.perf_counter()
    check.fit(module, data, "fsdp", 3, "bf16-mixed")
    seconds, steps = time.perf_counter() - began, data.counters["env_steps"]
    check.say(f"       PPO by FSDP2: {steps / seconds:,.0f} new tokens/s with training, peak memory {check.peak}")
    check.expect("PPO by FSDP2 in bf16-mixed ends with finite weights", all(
        bool(x.to_local().isfinite().all()) for x in module.parameters()  # type: ignore[operator]
    ))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="two CPU ranks and tiny models")
    check = Check(parser.parse_args().cpu)
    if not check.cpu and check.ranks < 2:
        print("error: needs two GPUs; --cpu runs the script on two CPU ranks", file=sys.stderr)
        return 2
    FOLDER.mkdir(exist_ok=True)
    save_batch(judged_replies(), FOLDER / "rows.pt")
    shape = TINY if check.cpu else SMALL
    rows = lambda: OfflineDataModule(str(FOLDER / "rows.pt"), passes=2)  # noqa: E731
    sft = lambda: ImitationPolicy(policy=policy(shape), divergence="nll", optimizer=slowly)  # noqa: E731
    same_weights(check, "SFT", sft, rows)
    same_weights(check, "DPO", lambda: DPOPolicy(policy=policy(shape), beta=0.5, optimizer=slowly), rows)
    large(check)
    return int(check.failed)


if __name__ == "__main__":
    sys.exit(main())
