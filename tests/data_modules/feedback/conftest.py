"""Fixtures: a tokenizer of six words, and a DataModule with a stub Trainer."""

from types import SimpleNamespace

import pytest
import torch

from data_modules.feedback import FeedbackDataModule, write
from data_modules.text.tokenizer import WordTokenizer

PAD, EOS, UNKNOWN, A, B, C, D, E, Q = range(9)


@pytest.fixture
def tokenizer():
    return WordTokenizer().fit(["a b c d e q"])


@pytest.fixture
def module(tmp_path, tokenizer):
    """Factory of DataModules with given judgements, after `setup`."""

    def make(judgements, world_size=1, rank=0, name="feedback.jsonl", **knobs):
        write(tmp_path / name, judgements)
        data = FeedbackDataModule(**({"path": str(tmp_path / name), "tokenizer": tokenizer} | knobs))
        data.trainer = SimpleNamespace(
            world_size=world_size,
            global_rank=rank,
            current_epoch=0,
            accumulate_grad_batches=1,
            lightning_module=SimpleNamespace(prepare=lambda batch: batch),
            # every rank is told the same here: the count of one, times their number
            strategy=SimpleNamespace(reduce=lambda x, reduce_op: x * world_size, root_device=torch.device("cpu")),
            state=SimpleNamespace(fn="fit"),
        )
        data.setup("fit")
        return data

    return make
