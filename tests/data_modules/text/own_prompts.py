"""Prompt files and tiny policies with a chat template, for tests of critics."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from data_modules.text import FolderTokenizer, PromptFile, RevisionDataModule
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.networks import DecoderShape, TransformerPolicy
from tests.data_modules.text.chats import SHAPES, folder

QUESTIONS = [f"what is it that {word} want ?" for word in ("you", "I", "we", "they")]
CRITIQUE = "say that it is 2"


@cache
def tokenizer(place: Path, shape: str = "chatml") -> FolderTokenizer:
    return FolderTokenizer(folder(place / shape, SHAPES[shape], "bytes"))


def lines(path: Path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def prompts(place: Path, **knobs) -> PromptFile:
    """Prompts of two kinds, given in their facts."""
    records = [{"prompt": text, "facts": {"kind": "ab"[i % 2]}} for i, text in enumerate(QUESTIONS)]
    held_out = lines(place / "held.jsonl", [{"prompt": "what is it that nobody want ?"}])
    knobs = {"val_path": held_out, "test_share": 0.0} | knobs
    return PromptFile(lines(place / "prompts.jsonl", records), **knobs)


def policy(of: FolderTokenizer, seed: int = 0) -> TransformerPolicy:
    """A policy that samples no special token, so that every reply can be quoted."""
    torch.manual_seed(seed)
    shape = DecoderShape(vocabulary=of.size, layers=1, heads=2, width=16, context=512, family="llama")
    return TransformerPolicy(shape)


def module(place: Path, **knobs) -> RevisionDataModule:
    """A data module with two prompts and two replies each, on the CPU."""
    settings = {
        "tokenizer": tokenizer(place),
        "prompts": 2,
        "replies": 2,
        "max_new": 4,
        "context": 512,
        "evaluation_prompts": 1,
    }
    data = RevisionDataModule(**({"task": prompts(place)} | settings | knobs))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        world_size=1, global_rank=0, strategy=strategy, testing=False, accumulate_grad_batches=1,
        default_root_dir="run",
    )  # fmt: skip
    data.setup("fit")
    return data


class Payer:
    """A `Scorer` that gives the sum of a reply's ids modulo 7, so that rewards differ."""

    def score(self, batch):
        sums = torch.where(batch.valid, batch.actions, 0).sum(1) % 7
        return torch.where(last_valid(batch.valid), sums[:, None].float() / 7, 0)


class Speaker:
    """An actor with three fixed texts: for a critique's prompt, for a revision's prompt, and for all others."""

    def __init__(self, of, wording, reply="want", critique=CRITIQUE, revision="2"):
        self.of, self.wording, self.read = of, wording, []
        self.says = {"reply": reply, "critique": critique, "revision": revision}

    def kind(self, text):
        """What the user's last turn asks for."""
        last = text.split("<|im_start|>user")[-1]
        if self.wording.criticise.split("{")[0].strip()[:20] in last:
            return "critique"
        return "revision" if self.wording.revise[:12] in last else "reply"

    def reply(self, ids, lengths, state=None, *, stop, copies=1, **how):
        rows = []
        for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
            text = self.of.decode(row[:length])
            self.read.append(text)
            rows += [[*self.of.encode(self.says[self.kind(text)]), stop[0]]] * copies
        sizes = torch.tensor([len(row) for row in rows])
        width = int(sizes.max())
        tokens = torch.tensor([row + [stop[0]] * (width - len(row)) for row in rows])
        return tokens, torch.full(tokens.shape, -0.5), sizes, None

    def token_log_probs(self, batch):
        return torch.where(batch.mask, -0.25, 0.0)

    def prepare(self, batch):
        return batch


class Always:
    """A critic that gives every reply the same critique."""

    def __init__(self, critique):
        self.critique, self.counters = critique, {}

    def critiques(self, cases, replies, seeds, acting):
        return [self.critique] * len(cases)
