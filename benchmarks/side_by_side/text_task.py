"""Models and batches for both sides of `text_speed.py`: the same files, the same token ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel

PROMPT, REPLY = 32, 64
SHAPES = {  # GPT-2: layers, width, heads, vocabulary, context
    "nano": (4, 128, 4, 512, 128),
    "small": (6, 384, 6, 4096, 256),
}
PAD, EOS = 0, 1
FIRST = 2  # the first id that is a word
LR = 1e-5


def write_model(shape: str, folder: Path) -> Path:
    """GPT-2 with fixed random weights and a tokenizer of the words `w2`, `w3`, …, as a Hugging Face folder.

    Returns: the folder, which is written only once.
    """
    path = folder / shape
    if (path / "model.safetensors").is_file():
        return path
    layers, width, heads, vocabulary, context = SHAPES[shape]
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=PAD,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    path.mkdir(parents=True, exist_ok=True)
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(FIRST, vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


def tokens(shape: str, rows: int, length: int, stream: int) -> list[list[int]]:
    """`rows` lists of `length` word ids. Odd streams are replies, whose last id is the end token."""
    vocabulary = SHAPES[shape][3]
    ids = np.random.default_rng([rows, length, stream]).integers(FIRST, vocabulary, (rows, length))
    if stream % 2:
        ids[:, -1] = EOS
    return ids.tolist()


def prompts(shape: str, rows: int) -> list[list[int]]:
    return tokens(shape, rows, PROMPT, 0)


def chosen(shape: str, rows: int) -> list[list[int]]:
    return tokens(shape, rows, REPLY, 1)


def rejected(shape: str, rows: int) -> list[list[int]]:
    return tokens(shape, rows, REPLY, 3)


def pays(ids: list[int]) -> float:
    """Reward of a reply: the share of even ids, which takes no time to compute."""
    return sum(i % 2 == 0 for i in ids) / max(len(ids), 1)
