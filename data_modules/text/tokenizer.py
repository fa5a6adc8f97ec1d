"""Text to token ids and back: words or bytes or pairs of them, made from a task's corpus."""

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
    """What every kind can do. A tokenizer made from a corpus is the same in every process: so says its `digest`.

    Text is text: `<eos>` written in a prompt does not end it; see `ControlTokens`. What the vocabulary does not hold is
    an error, never a silent stand-in.
    """

    has_template = False  # that a chat is written by
    eos: int  # the id that ends a reply
    pad: int  # the id behind the end of a row, another than `eos`

    def __init__(self) -> None:
        self._fitted: Any = None  # tokenizers.Tokenizer
        self._special: dict[str, str] = {}  # pad_token, eos_token and maybe unk_token, as Hugging Face names them
        self._begin: list[int] = []

    @property
    def ready(self) -> bool:
        """Whether it has its vocabulary, and needs no `fit`."""
        return self._fitted is not None

    def fit(self, corpus: Iterable[str]) -> Self:
        """Made from the texts of a task, in the order they come in; returns itself."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The ids of a piece of text, nothing added.

        Raises:
            ValueError: it holds a word that is not in the vocabulary, or spells a special token.
        """
        return self._known(self._control.encode(text))

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a model's own reply: unlike `encode`, keeps tokens such as `<think>` that are not special."""
        return self._known(self._control.encode(text, reply=True))

    def _known(self, encoded: Encoded) -> list[int]:
        refused = {*self._refused, self._control.unknown}
        place = next((i for i, token in enumerate(encoded.ids) if token in refused), None)
        if place is not None:
            word = encoded.text[slice(*encoded.offsets[place])]
            raise ValueError(
                f"the tokenizer has no {word!r}: its corpus must hold every word of the task, and no special token"
            )
        return encoded.ids

    def encode_prompt(self, prompt: str | Messages) -> list[int]:
        """The ids a dialogue starts with: the begin token first, if the model has one; messages by the chat template.

        Raises:
            ValueError: as `encode` and `encode_chat`.
        """
        return self._begin + self.encode(prompt) if isinstance(prompt, str) else self.encode_chat(prompt)

    def encode_chat(self, messages: Messages) -> list[int]:
        """The ids of a chat up to where the reply begins.

        Raises:
            ValueError: there is no chat template.
        """
        raise ValueError(
            "the prompt is a list of messages, and the tokenizer has no chat template: give it as one text"
        )

    def encode_turn(self, text: str, chat: Messages, end: int | None = None) -> list[int]:
        """The ids between a model's reply and its next one, when the user says `text`: read, never sampled.

        They are the end of the reply's turn, the user's turn, and where the next reply begins, by the chat template.
        The row keeps the tokens of the reply as they were sampled, whatever the template would make of them.

        Args:
            text: the next message of the user.
            chat: the messages that led to the reply; what the assistant says in them does not matter.
            end: the last token of the reply, if that ended it; it is not written twice. None: the reply was cut, and
                the template's end is added.
        Raises:
            ValueError: there is no chat template; it refuses the chat; or where a reply ends cannot be found in it.
        """
        raise ValueError("a dialogue of several turns needs a chat template, and the tokenizer has none")

    def token(self, text: str) -> int:
        """The id of a text that is one token; a special token, such as `<|im_end|>`, is one.

        Raises:
            ValueError: it is more than one, or none; or it pads, or stands for what is unknown.
        """
        special = self._backend.token_to_id(text)
        if special in self._refused - {self.eos}:
            raise ValueError(f"{text!r} pads, or stands for what is unknown")
        if special in self._backend.get_added_tokens_decoder():
            return special
        ids = self.encode(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens of this tokenizer, and must be one")
        return ids[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply without the `eos` at its end; special tokens anywhere else are spelled out."""
        ids = list(ids)
        if ids and ids[-1] == self.eos:
            ids.pop()
        return self._backend.decode(ids, skip_special_tokens=False)

    @property
    def size(self) -> int:
        """Ids there are: a policy's `vocabulary` is at least this."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of what decides about ids: tokenizer.json in canonical form, and which tokens begin, end and pad.

        A round trip through transformers leaves it as it is.
        """
        content = json.loads(self._backend.to_str())
        for name in ("padding", "truncation", "post_processor"):  # of all that these do, only `_begin` is done here
            content.pop(name)
        canonical = json.dumps([content, self._begin, self.eos, self.pad], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """In Hugging Face layout: `AutoTokenizer.from_pretrained(folder)` and `FolderTokenizer(folder)` read it."""
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
            raise RuntimeError(f"{type(self).__name__}: fit(corpus) comes first")
        return self._fitted

    @cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self._backend)

    def _take(self, backend: Any, special: dict[str, str]) -> Self:
        """Ready: `special` are tokens of `backend`, by the names of `_special`."""
        backend.no_truncation()
        backend.no_padding()
        self._fitted, self._special = backend, special
        self.__dict__.pop("_control", None)  # of another backend
        self.eos, self.pad = backend.token_to_id(special["eos_token"]), backend.token_to_id(special["pad_token"])
        self._refused = {backend.token_to_id(token) for token in special.values()}
        return self


class WordTokenizer(Tokenizer):
    """One id for every word between white space, in alphabetical order; white space itself is not kept."""

    def fit(self, corpus: Iterable[str]) -> Self:
        tokenizers = library("tokenizers")
        split = tokenizers.pre_tokenizers.WhitespaceSplit()
        words = {word for text in corpus for word, _ in split.pre_tokenize_str(text)}
        special = [PAD, EOS, UNKNOWN]
        if taken := words.intersection(special):
            raise ValueError(
                f"the corpus holds {', '.join(sorted(taken))}, which mean something else here: rename them"
            )
        vocabulary = {word: i for i, word in enumerate([*special, *sorted(words)])}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
        backend.pre_tokenizer = split
        backend.add_special_tokens(special)
        return self._take(backend, {"pad_token": PAD, "eos_token": EOS, "unk_token": UNKNOWN})


class BPETokenizer(Tokenizer):
    """Byte pairs, merged as the corpus has them; any text can be encoded, and comes back as it was.

    Args:
        size: ids in all: 2 special ones, 256 bytes, and the merges.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        if size < 258:
            raise ValueError(f"size: got {size}, must be at least 258: two special tokens and 256 bytes")
        self.asked = size

    def fit(self, corpus: Iterable[str]) -> Self:
        """Raises ValueError: the corpus has fewer pairs than `size` asks for."""
        tokenizers = library("tokenizers")
        level = tokenizers.pre_tokenizers.ByteLevel
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = level(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.asked,
            special_tokens=[PAD, EOS],
            initial_alphabet=sorted(level.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(corpus, trainer)
        if backend.get_vocab_size() < self.asked:
            raise ValueError(f"size: got {self.asked}, and the corpus gives only {backend.get_vocab_size()} tokens")
        return self._take(backend, {"pad_token": PAD, "eos_token": EOS})


class ByteTokenizer(BPETokenizer):
    """One id for every byte of UTF-8: nothing is unknown, and nothing depends on the corpus."""

    def __init__(self) -> None:
        super().__init__(size=258)

    def fit(self, corpus: Iterable[str] = ()) -> Self:
        return super().fit(())


def library(name: str) -> Any:
    """A package that only text needs.

    Raises:
        ModuleNotFoundError: it is not installed; says how it is.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed. It comes with: pip install 'lightning_nlf[text]'", name=error.name
        ) from None
