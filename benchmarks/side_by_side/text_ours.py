"""What `text_speed.py` measures of this library: the token loop, and whole fits by the Trainer."""

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
    """Times at which optimizer steps ended, and the loss of the last."""

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
    """Args: mode: "fp32" or "bf16"."""
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


def rows_of(shown: list[list[int]], replies: list[list[int]], **more: Any) -> Batch:
    """A row for each prompt and its reply."""
    ids = torch.tensor([p + r for p, r in zip(shown, replies, strict=True)])
    said = torch.zeros(len(ids), ids.shape[1] - 1, dtype=torch.bool)
    said[:, len(shown[0]) - 1 :] = True
    terminated = torch.ones(len(ids), dtype=torch.bool)
    given = {"valid": said, "mask": said, "final_obs": ids[:, -1], "terminated": terminated} | more
    return Batch(obs=ids[:, :-1], actions=ids[:, 1:], **given)


def offline(batch: Batch, passes: int) -> OfflineDataModule:
    path = Path(tempfile.mkdtemp()) / "rows.pt"
    save_batch(batch, path)
    return OfflineDataModule(str(path), passes=passes)


def sft(repeat: int, folder: str, shape: str, mode: str, rows: int = 32, steps: int = 8, lr: float = LR) -> Figures:
    """One optimizer step on `rows` demonstrations, milliseconds."""
    path = write_model(shape, Path(folder))
    batch = rows_of(prompts(shape, rows), chosen(shape, rows))
    nobody = torch.zeros_like(batch.mask)
    batch = Batch(
        obs=batch.obs,
        actions=batch.actions,
        valid=batch.valid,
        mask=nobody,
        expert_actions=batch.actions,
        expert_mask=batch.mask,
    )
    policy = TransformerPolicy(weights=str(path))
    module = ImitationPolicy(policy=policy, divergence="nll", optimizer=partial(ADAM, lr=lr))
    return run(module, offline(batch, steps + WARM), mode, 1)


def pairs_of(shape: str, pairs: int, turn: int = 0) -> Batch:
    """Chosen and rejected of each prompt next to each other, their words turned so far."""
    shown = [p for p in prompts(shape, pairs) for _ in range(2)]
    both = [r for two in zip(chosen(shape, pairs), rejected(shape, pairs), strict=True) for r in two]
    replies = [[*reply[turn:-1], *reply[:turn], reply[-1]] for reply in both]
    return rows_of(shown, replies, group=torch.arange(2 * pairs) // 2, rank=torch.arange(2 * pairs) % 2)


def reward(repeat: int, folder: str, shape: str, mode: str, pairs: int = 16, steps: int = 8, lr: float = LR) -> Figures:
    """One optimizer step of a Bradley-Terry reward model on `pairs` pairs."""
    path = write_model(shape, Path(folder))
    network = TransformerReward(weights=str(path))
    torch.nn.init.zeros_(network.head.weight)  # so that both sides start from ln 2
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
    """One optimizer step of DPO on `pairs` pairs; with `cached` the reference has read them before."""
    path = write_model(shape, Path(folder))
    module = DPOPolicy(policy=TransformerPolicy(weights=str(path)), beta=0.1, optimizer=partial(ADAM, lr=lr))
    if cached:
        return run(module, offline(pairs_of(shape, pairs), steps + WARM), mode, 1)
    return run(module, OtherPairs(shape, pairs), mode, steps + WARM)


class OtherPairs(MinibatchDataModule):
    """In every iteration pairs that were not there before: what the reference says of rows is remembered."""

    def __init__(self, shape: str, pairs: int) -> None:
        super().__init__()
        self.shape, self.pairs = shape, pairs

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        return pairs_of(self.shape, self.pairs, turn=self.counters["iteration"])


class Groups(MinibatchDataModule):
    """Some replies to each of the same prompts, paid by `pays`; one optimizer step an iteration."""

    def __init__(self, shape: str, groups: int, copies: int) -> None:
        super().__init__()
        self.prompts, self.copies = prompts(shape, groups), copies

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        ids, lengths = torch.tensor(self.prompts), torch.full((len(self.prompts),), len(self.prompts[0]))
        # no token ends a reply: as long as the peer's
        tokens, log_probs, _, _ = actor.reply(ids, lengths, stop=(-1,), max_new=REPLY, copies=self.copies)
        shown = [p for p in self.prompts for _ in range(self.copies)]
        replies = tokens.tolist()
        score = torch.tensor([pays(reply) for reply in replies])
        batch = rows_of(shown, replies, group=torch.arange(len(replies)) // self.copies, score=score)
        steps = torch.zeros(batch.mask.shape)
        paid, behaviour = steps.clone(), steps.clone()
        paid[:, -1], behaviour[:, -REPLY:] = score, log_probs
        return Batch(**{**vars(batch), "rewards": paid, "log_probs": behaviour})


def grpo(repeat: int, folder: str, shape: str, mode: str, groups: int = 8, copies: int = 8, steps: int = 3) -> Figures:
    """One iteration of GRPO: `groups` prompts, `copies` replies of 64 tokens each, one optimizer step."""
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
    """New tokens a second of `generation.reply`, every reply 64 tokens long."""
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
