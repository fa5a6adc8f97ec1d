"""Tokenizers built from a task's corpus: words, byte pairs, or bytes."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from data_modules.text.chat_template import Messages
from data_modules.text.control_tokens import ControlTokens, Encoded
from lightning_nlf.numbers import Size

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


class Tokenizer:
    """Base of all tokenizers. A tokenizer built from a corpus is the same in every process, with the same `digest`.

    Text cannot spell a control token: `<eos>` in a prompt does not end the prompt, see `ControlTokens`. Text outside
    the vocabulary is an error, and is never replaced silently.
    """

    has_template = False  # whether there is a chat template
    eos: int  # the id that ends a reply
    pad: int  # the id of padding, different from `eos`

    def __init__(self) -> None:
        self._fitted: Any = None  # tokenizers.Tokenizer
        self._special: dict[str, str] = {}  # Hugging Face's name (pad_token, eos_token, unk_token) → token
        self._begin: list[int] = []

    @property
    def ready(self) -> bool:
        """Whether the tokenizer has a vocabulary. If not, `fit` must be called first."""
        return self._fitted is not None

    def fit(self, corpus: Iterable[str]) -> Self:
        """Build the vocabulary from the texts of a task, and return the tokenizer. The order of the texts matters."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Encode a piece of text, with nothing added.

        Raises:
            ValueError: the text has a word that is not in the vocabulary, or spells a special token.
        """
        return self._refuse_unknown(self._control.encode(text))

    def encode_reply(self, text: str) -> list[int]:
        """Encode a model's own reply. Unlike `encode`, accept tokens such as `<think>` that are not special."""
        return self._refuse_unknown(self._control.encode(text, reply=True))

    def _refuse_unknown(self, encoded: Encoded) -> list[int]:
        refused = {*self._refused, self._control.unknown}
        place = next((i for i, token in enumerate(encoded.ids) if token in refused), None)
        if place is not None:
            word = encoded.text[slice(*encoded.offsets[place])]
            raise ValueError(
                f"the tokenizer has no token for {word!r}: its corpus must contain every word of the task, and special "
                "tokens cannot be written as text"
            )
        return encoded.ids

    def encode_prompt(self, prompt: str | Messages) -> list[int]:
        """Encode the start of a dialogue: begin token, if any, and text; or messages by the chat template.

        Raises:
            ValueError: as `encode` and `encode_chat`.
        """
        return self._begin + self.encode(prompt) if isinstance(prompt, str) else self.encode_chat(prompt)

    def encode_chat(self, messages: Messages) -> list[int]:
        """Encode a chat by the chat template, up to the start of the next reply.

        Raises:
            ValueError: there is no chat template.
        """
        raise ValueError(
            "the prompt is a list of messages, and the tokenizer has no chat template: give the prompt as one text"
        )

    def encode_turn(self, text: str, chat: Messages, end: int | None = None) -> list[int]:
        """The ids between two replies of a model in which the user's message is `text`.

        By the chat template these ids are the end of the first reply, the user's turn, and the opening of the next
        reply. The row keeps the reply's tokens as they were sampled, even if the template would write the reply
        differently.

        Args:
            text: the user's next message.
            chat: the messages before the reply. The contents of assistant messages have no effect.
            end: the stop token that ended the reply, which is not written twice. None = the reply was cut off, so the
                template's end token is added.
        Raises:
            ValueError: there is no chat template; the template refuses the chat; or the end of the reply cannot be
                located.
        """
        raise ValueError("a dialogue of several turns needs a chat template, and the tokenizer has none")

    def token(self, text: str) -> int:
        """The id of a text that is exactly one token, which may be a special token such as `<|im_end|>`.

        Raises:
            ValueError: the text is not exactly one token, or is the padding token or the unknown token.
        """
        special = self._backend.token_to_id(text)
        if special in self._refused - {self.eos}:
            raise ValueError(f"{text!r} is the padding or unknown token")
        if special in self._backend.get_added_tokens_decoder():
            return special
        ids = self.encode(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens in this tokenizer, must be one")
        return ids[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode a reply, without `eos` at the end. Special tokens elsewhere are written out."""
        ids = list(ids)
        if ids and ids[-1] == self.eos:
            ids.pop()
        return self._backend.decode(ids, skip_special_tokens=False)

    @property
    def size(self) -> int:
        """The number of ids, which is the minimum `vocabulary` of a policy."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines ids: tokenizer.json in canonical form, and the begin, eos and pad ids.

        Saving and loading the tokenizer with transformers does not change the digest.
        """
        content = json.loads(self._backend.to_str())
        for name in ("padding", "truncation", "post_processor"):  # unused here, apart from `_begin`
            content.pop(name)
        canonical = json.dumps([content, self._begin, self.eos, self.pad], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Save in Hugging Face layout, for `AutoTokenizer.from_pretrained(folder)` and `FolderTokenizer(folder)`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        for name, content in (
            ("tokenizer_config.json", self._config() | self._special),
            ("special_tokens_map.json", self._special),
        ):
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _config(self) -> dict[str, Any]:
        return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}

    @property
    def _backend(self) -> Any:
        if self._fitted is None:
            raise RuntimeError(f"{type(self).__name__}: call fit(corpus) first")
        return self._fitted

    @cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self._backend)

    def _take(self, backend: Any, special: dict[str, str]) -> Self:
        """Set the vocabulary.  special: special tokens of `backend`, by Hugging Face's names as in `_special`."""
        backend.no_truncation()
        backend.no_padding()
        self._fitted, self._special = backend, special
        self.__dict__.pop("_control", None)  # the cached one is from an earlier backend
        self.eos, self.pad = backend.token_to_id(special["eos_token"]), backend.token_to_id(special["pad_token"])
        self._refused = {backend.token_to_id(token) for token in special.values()}
        return self


class WordTokenizer(Tokenizer):
    """One id for each word, split at white space, in alphabetical order. Decoding does not restore the white space."""

    def fit(self, corpus: Iterable[str]) -> Self:
        tokenizers = library("tokenizers")
        split = tokenizers.pre_tokenizers.WhitespaceSplit()
        words = {word for text in corpus for word, _ in split.pre_tokenize_str(text)}
        special = [PAD, EOS, UNKNOWN]
        if reserved := words.intersection(special):
            raise ValueError(
                f"the corpus contains {', '.join(sorted(reserved))}, which are special tokens here: rename them"
            )
        vocabulary = {word: i for i, word in enumerate([*special, *sorted(words)])}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
        backend.pre_tokenizer = split
        backend.add_special_tokens(special)
        return self._take(backend, {"pad_token": PAD, "eos_token": EOS, "unk_token": UNKNOWN})


class BPETokenizer(Tokenizer):
    """Byte pair encoding with merges from the corpus. It can encode every text, and decoding restores the text.

    Args:
        size: number of ids, which is 2 special tokens, 256 bytes, and the merges.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        if size < 258:
            raise ValueError(f"size: got {size}, must be at least 258: two special tokens and 256 bytes")
        self.target_size = size

    def fit(self, corpus: Iterable[str]) -> Self:
        """Learn the merges.  Raises ValueError: the corpus has too few pairs for `size` ids."""
        tokenizers = library("tokenizers")
        level = tokenizers.pre_tokenizers.ByteLevel
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = level(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.target_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=sorted(level.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(corpus, trainer)
        if backend.get_vocab_size() < self.target_size:
            raise ValueError(
                f"size: got {self.target_size}, and the corpus gives only {backend.get_vocab_size()} tokens; lower size"
            )
        return self._take(backend, {"pad_token": PAD, "eos_token": EOS})


class ByteTokenizer(BPETokenizer):
    """One id for each byte of UTF-8. Every text can be encoded, whatever the corpus."""

    def __init__(self) -> None:
        super().__init__(size=258)
        self.fit()

    def fit(self, corpus: Iterable[str] = ()) -> Self:
        return super().fit(())


def library(name: str) -> Any:
    """Import an optional package that only text tasks need.

    Raises:
        ModuleNotFoundError: the package is not installed; the message gives the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; run: pip install 'lightning_nlf[text]'", name=error.name
        ) from None
