"""The tokenizer that a language model came with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from data_modules.text.tokenizer import Messages, Tokenizer, library

TEMPLATE = "chat_template.jinja"


class FolderTokenizer(Tokenizer):
    """That of a Hugging Face folder or hub id, by its tokenizer.json; its chat template is kept.

    Args:
        path: a folder with tokenizer.json, or a hub id such as `openai-community/gpt2`, which is downloaded once.
        eos, pad: a token to end replies with and one to pad with, where the folder names none; a new one, such as
            `<|pad|>`, gets the next free id.

    Raises:
        ValueError: there is no tokenizer.json, or no eos, or no pad, or they are the same.
    """

    def __init__(self, path: str, eos: str | None = None, pad: str | None = None) -> None:
        super().__init__()
        self.path = path
        folder = self._folder = _local(path)
        backend = _read(folder / "tokenizer.json")
        self._source = _json(folder / "tokenizer_config.json")
        named = _json(folder / "special_tokens_map.json") | self._source
        _refuse_odd_tokens(named, folder)
        given = {"pad_token": pad, "eos_token": eos, "unk_token": None}
        special = {name: token for name, own in given.items() if (token := own or _content(named.get(name)))}
        self._check(special)
        backend.add_special_tokens([special["pad_token"], special["eos_token"]])
        self._take(backend, special)
        added = backend.encode("", add_special_tokens=True).ids
        # what it puts before a text; an eos that it puts behind one is the reply's to say
        self._begin = added[:-1] if added[-1:] == [self.eos] else added

    def fit(self, corpus: Iterable[str] = ()) -> Self:
        """It is what it is."""
        return self

    @property
    def has_template(self) -> bool:  # type: ignore[override]
        return self._renderer.chat_template is not None

    def encode_chat(self, messages: Messages) -> list[int]:
        if not self.has_template:
            return super().encode_chat(messages)
        text = self._renderer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **self._special
        )
        self._backend.encode_special_tokens = False  # those of the template are meant
        ids = self._backend.encode(text, add_special_tokens=False).ids
        self._backend.encode_special_tokens = True
        return ids

    @cached_property
    def _renderer(self) -> Any:
        """transformers knows how a template is read."""
        return library("transformers").AutoTokenizer.from_pretrained(self._folder)

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        template = self._folder / TEMPLATE
        if template.is_file():
            (Path(folder) / TEMPLATE).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")

    def _config(self) -> dict[str, Any]:
        return super()._config() | self._source

    def _check(self, special: dict[str, str]) -> None:
        for name, example in (("eos", "<|endoftext|>"), ("pad", "<|pad|>")):
            if f"{name}_token" not in special:
                raise ValueError(
                    f"the tokenizer {self.path} has no {name} token: name one, such as `{name}: {example}`; "
                    "a new one needs a row in the model's embedding"
                )
        if special["eos_token"] == special["pad_token"]:
            raise ValueError(
                f"the tokenizer {self.path} pads with its eos token {special['eos_token']!r}, so the end of a reply "
                "could not be told from padding: name another, such as `pad: <|pad|>`"
            )


def _local(path: str) -> Path:
    """The folder, or the hub's snapshot of its tokenizer files."""
    folder = Path(path)
    if not folder.is_dir():
        folder = _downloaded(path)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"path: {path} has no tokenizer.json; "
            f"`AutoTokenizer.from_pretrained({path!r}).save_pretrained(folder)` writes one"
        )
    return folder


def _downloaded(path: str) -> Path:
    hub = library("huggingface_hub")
    files = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE]
    try:
        return Path(hub.snapshot_download(path, allow_patterns=files))
    except (
        hub.errors.HFValidationError,
        hub.errors.LocalEntryNotFoundError,
        hub.errors.RepositoryNotFoundError,
    ) as error:
        cause = str(error).strip().partition("\n")[0]
        raise ValueError(f"path: {path} is no folder, and no hub id that can be had: {cause}") from None


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; {} without one. Raises ValueError: it is no JSON object in UTF-8."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"path: {path} is damaged: {error}: fetch or save the tokenizer again") from error
    if not isinstance(content, dict):
        raise ValueError(f"path: {path} must hold a JSON object, and holds a {type(content).__name__}")
    return content


def _read(path: Path) -> Any:
    """Raises ValueError: tokenizer.json is no tokenizer."""
    try:
        return library("tokenizers").Tokenizer.from_str(path.read_bytes().decode("utf-8-sig"))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # tokenizers raises that very class
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"path: {path} is damaged: {reason}: fetch or save the tokenizer again") from error


def _refuse_odd_tokens(named: dict[str, Any], folder: Path) -> None:
    """Raises ValueError: a special token that is neither a text nor an object with its `content`."""
    for name in ("eos_token", "pad_token", "unk_token"):
        token = named.get(name)
        if token is not None and not isinstance(token.get("content") if isinstance(token, dict) else token, str):
            raise ValueError(f"path: {folder / 'tokenizer_config.json'}: {name}: got {token!r}, must be a text")


def _content(token: Any) -> str | None:
    """A special token is written as text, or as a mapping with its `content`."""
    return token["content"] if isinstance(token, dict) else token
