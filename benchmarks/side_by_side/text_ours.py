"""Our side of `text_speed.py`: token generation, and fits by the Trainer."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from benchmarks.side_by_side.text_task import LR, REPLY, chosen, pays, prompts, rejected, write_model
from data_modules.minibatches import MinibatchDataModule
from data_modules.offline import OfflineDataModule, save_batch
from lightning_nlf.batch import Actor, Batch
from lightning_nlf.cli import noise
from lightning_nlf.language import generation
from lightning_nlf.networks import TransformerPolicy, TransformerReward
from lightning_nlf.objectives import BradleyTerryReward, DPOPolicy, ImitationPolicy, ReinforcePolicy

noise.silence()
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
Figures = dict[str, Any]
WARM = 3  # optimizer steps that are not timed


class Steps(L.Callback):
    """Callback that records the end times of optimizer steps, and the last loss."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.loss = float("nan")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.loss = float(outputs["loss"])
        self.times.append(time.perf_counter())

    @property
    def milliseconds(self) -> float:
        timed = self.times[WARM - 1 :]
        return 1e3 * (timed[-1] - timed[0]) / (len(timed) - 1)


def run(module: Any, data: Any, mode: str, epochs: int) -> Figures:
    """Fit and return milliseconds per optimizer step, and the last loss. Args: mode: "fp32" or "bf16"."""
    watch = Steps()
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if mode == "bf16" else "32-true",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=[watch],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        **quiet,  # type: ignore[arg-type]
    )
    trainer.fit(module, data)
    return {"value": watch.milliseconds, "loss": watch.loss}


ADAM = partial(torch.optim.AdamW, lr=LR, weight_decay=0.0, foreach=True)


def rows_of(prompt_ids: list[list[int]], replies: list[list[int]], **overrides: Any) -> Batch:
    """Batch with a row for each prompt and reply."""
    ids = torch.tensor([p + r for p, r in zip(prompt_ids, replies, strict=True)])
    is_reply = torch.zeros(len(ids), ids.shape[1] - 1, dtype=torch.bool)
    is_reply[:, len(prompt_ids[0]) - 1 :] = True
    terminated = torch.ones(len(ids), dtype=torch.bool)
    fields = {"valid": is_reply, "mask": is_reply, "final_obs": ids[:, -1], "terminated": terminated} | overrides
    return Batch(obs=ids[:, :-1], actions=ids[:, 1:], **fields)


def offline(batch: Batch, passes: int) -> OfflineDataModule:
    path = Path(tempfile.mkdtemp()) / "rows.pt"
    save_batch(batch, path)
    return OfflineDataModule(str(path), passes=passes)


def sft(repeat: int, folder: str, shape: str, mode: str, rows: int = 32, steps: int = 8, lr: float = LR) -> Figures:
    """Milliseconds per optimizer step of SFT on `rows` demonstrations."""
    path = write_model(shape, Path(folder))
    batch = rows_of(prompts(shape, rows), chosen(shape, rows))
    no_steps = torch.zeros_like(batch.mask)
    batch = Batch(
        obs=batch.obs,
        actions=batch.actions,
        valid=batch.valid,
        mask=no_steps,
        expert_actions=batch.actions,
        expert_mask=batch.mask,
    )
    policy = TransformerPolicy(weights=str(path))
    module = ImitationPolicy(policy=policy, divergence="nll", optimizer=partial(ADAM, lr=lr))
    return run(module, offline(batch, steps + WARM), mode, 1)


def pairs_of(shape: str, pairs: int, turn: int = 0) -> Batch:
    """Chosen and rejected replies of each prompt in adjacent rows, with their words rotated by `turn`."""
    prompt_ids = [p for p in prompts(shape, pairs) for _ in range(2)]
    replies_in_turn = [r for two in zip(chosen(shape, pairs), rejected(shape, pairs), strict=True) for r in two]
    replies = [[*reply[turn:-1], *reply[:turn], reply[-1]] for reply in replies_in_turn]
    return rows_of(prompt_ids, replies, group=torch.arange(2 * pairs) // 2, rank=torch.arange(2 * pairs) % 2)


def reward(repeat: int, folder: str, shape: str, mode: str, pairs: int = 16, steps: int = 8, lr: float = LR) -> Figures:
    """Milliseconds per optimizer step of a Bradley-Terry reward model on `pairs` pairs."""
    path = write_model(shape, Path(folder))
    network = TransformerReward(weights=str(path))
    torch.nn.init.zeros_(network.head.weight)  # both sides start from the loss ln 2
    module = BradleyTerryReward(reward=network, optimizer=partial(ADAM, lr=lr), normalize=0)
    return run(module, offline(pairs_of(shape, pairs), steps + WARM), mode, 1)


def dpo(
    repeat: int,
    folder: str,
    shape: str,
    mode: str,
    cached: bool = False,
    pairs: int = 16,
    steps: int = 8,
    lr: float = LR,
) -> Figures:
    """Milliseconds per optimizer step of DPO on `pairs` pairs; `cached`: reference log-probabilities are cached."""
    path = write_model(shape, Path(folder))
    module = DPOPolicy(policy=TransformerPolicy(weights=str(path)), beta=0.1, optimizer=partial(ADAM, lr=lr))
    if cached:
        return run(module, offline(pairs_of(shape, pairs), steps + WARM), mode, 1)
    return run(module, OtherPairs(shape, pairs), mode, steps + WARM)


class OtherPairs(MinibatchDataModule):
    """DataModule with new pairs in every iteration, so that cached reference log-probabilities are never used."""

    def __init__(self, shape: str, pairs: int) -> None:
        super().__init__()
        self.shape, self.pairs = shape, pairs

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        return pairs_of(self.shape, self.pairs, turn=self.counters["iteration"])


class Groups(MinibatchDataModule):
    """DataModule with `copies` replies to each of the same prompts, rewarded by `pays`; one step per iteration."""

    def __init__(self, shape: str, groups: int, copies: int) -> None:
        super().__init__()
        self.prompts, self.copies = prompts(shape, groups), copies

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        ids, lengths = torch.tensor(self.prompts), torch.full((len(self.prompts),), len(self.prompts[0]))
        # no stop token, so that replies are as long as the peer's
        tokens, log_probs, _, _ = actor.reply(ids, lengths, stop=(-1,), max_new=REPLY, copies=self.copies)
        prompt_ids = [p for p in self.prompts for _ in range(self.copies)]
        replies = tokens.tolist()
        score = torch.tensor([pays(reply) for reply in replies])
        batch = rows_of(prompt_ids, replies, group=torch.arange(len(replies)) // self.copies, score=score)
        steps = torch.zeros(batch.mask.shape)
        rewards, behaviour = steps.clone(), steps.clone()
        rewards[:, -1], behaviour[:, -REPLY:] = score, log_probs
        return Batch(**{**vars(batch), "rewards": rewards, "log_probs": behaviour})


def grpo(repeat: int, folder: str, shape: str, mode: str, groups: int = 8, copies: int = 8, steps: int = 3) -> Figures:
    """Milliseconds per GRPO iteration: `groups` prompts, `copies` replies of 64 tokens each, one optimizer step."""
    path = write_model(shape, Path(folder))
    module = ReinforcePolicy(
        policy=TransformerPolicy(weights=str(path)),
        baseline="group_mean",
        advantage_scale="group_std",
        gamma=1.0,
        clip=0.2,
        optimizer=ADAM,
    )
    return run(module, Groups(shape, groups, copies), mode, steps + WARM)


@torch.no_grad()
def tokens_per_second(repeat: int, folder: str, shape: str, mode: str, rows: int, copies: int = 1) -> Figures:
    """New tokens per second of `generation.reply`, with replies of 64 tokens."""
    policy = TransformerPolicy(weights=str(write_model(shape, Path(folder)))).eval()
    ids = torch.tensor(prompts(shape, rows // copies))
    lengths = torch.full((len(ids),), ids.shape[1])
    for _ in range(2):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
            tokens, *_ = generation.reply(policy, ids, lengths, stop=(-1,), max_new=REPLY, copies=copies)
        spent = time.perf_counter() - started
        assert tokens.shape == (rows, REPLY)
    return {"value": rows * REPLY / spent}
