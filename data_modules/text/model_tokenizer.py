"""The tokenizer that a language model came with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

from data_modules.text.chat_template import chat_ids, turn_ids
from data_modules.text.control_tokens import ControlTokens
from data_modules.text.tokenizer import Messages, Tokenizer, library

TEMPLATE = "chat_template.jinja"
OF_TEMPLATES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)  # what a template's code raises


class FolderTokenizer(Tokenizer):
    """That of a Hugging Face folder or hub id, by its tokenizer.json; its chat template is kept.

    Args:
        path: a folder with tokenizer.json, or a hub id such as `openai-community/gpt2`, which is downloaded once.
        eos: a token to end replies with, where the folder names none.
        pad: a token to pad with. Padding is never read: by default it is what the folder names, or where that is none
            or eos, a special token that means nothing else. A new one, such as `<|pad|>`, gets the next free id.

    Raises:
        ValueError: there is no tokenizer.json, or no eos, or `pad` is eos.
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
        if pad is None and special.get("pad_token") in (None, special.get("eos_token")):
            special.pop("pad_token", None)
        tokens = {name: _content(token) for name, token in named.items() if name.endswith("_token")}
        self._texts = {name: token for name, token in tokens.items() if isinstance(token, str)} | special
        special.setdefault("pad_token", self._spare(backend))
        self._texts |= special
        self._check(special)
        declared = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        new = [special[name] for name in ("pad_token", "eos_token") if special[name] not in declared]
        backend.add_special_tokens(new)  # those that are declared keep what they do to the blanks beside them
        self._take(backend, special)
        self._begin = self._first(backend)

    def _first(self, backend: Any) -> list[int]:
        """What it puts before a text. What it puts after one, such as eos, is the reply's to say."""
        encoding = backend.encode(self._special["eos_token"], add_special_tokens=True)
        pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return [token for token, _ in takewhile(lambda pair: pair[1], pairs)]

    def fit(self, corpus: Iterable[str] = ()) -> Self:
        """It is what it is."""
        return self

    @property
    def has_template(self) -> bool:  # type: ignore[override]
        return self._template is not None

    def encode_chat(self, messages: Messages) -> list[int]:
        if not self.has_template:
            return super().encode_chat(messages)
        return chat_ids(messages, self._rendered, self._control)

    def encode_turn(self, text: str, chat: Messages, end: int | None = None) -> list[int]:
        if not self.has_template:
            return super().encode_turn(text, chat, end)
        return turn_ids(text, chat, self._rendered, self._control, end)

    def _rendered(self, messages: Messages) -> str:
        """Raises ValueError: the template refuses these messages, and says why."""
        try:
            return self._renderer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **self._texts
            )
        except (library("jinja2").TemplateError, *OF_TEMPLATES) as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"prompt: the chat template of {self.path} refuses it: {cause}") from None

    @cached_property
    def _renderer(self) -> Any:
        """transformers knows how a template is read. Of the folder it sees nothing but this, so it runs nothing."""
        backend = library("tokenizers").Tokenizer(library("tokenizers").models.WordLevel({"": 0}, unk_token=""))
        return library("transformers").PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=self._template)

    @cached_property
    def _template(self) -> Any:
        """A text, or a list of them with `name` and `template`; None without one."""
        file = self._folder / TEMPLATE
        return file.read_text(encoding="utf-8-sig") if file.is_file() else self._source.get("chat_template")

    @cached_property
    def _control(self) -> ControlTokens:
        special = {*self._texts.values(), *_listed_special(self._source)}
        return ControlTokens(self._backend, special, str(self._template or ""))

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        template = self._folder / TEMPLATE
        if template.is_file():
            (Path(folder) / TEMPLATE).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")

    def _config(self) -> dict[str, Any]:
        return {name: value for name, value in (super()._config() | self._source).items() if name != "auto_map"}

    def _check(self, special: dict[str, str]) -> None:
        if "eos_token" not in special:
            raise ValueError(f"the tokenizer {self.path} has no eos token: name one, such as `eos: <|endoftext|>`")
        if special["eos_token"] == special["pad_token"]:
            raise ValueError(
                f"pad: {special['pad_token']!r} is the eos token of {self.path}, so the end of a reply could not be "
                "told from padding: name another, or leave pad out"
            )

    def _spare(self, backend: Any) -> str:
        """A special token that there is, and that means nothing else: padding is never read. Else a new one."""
        added = backend.get_added_tokens_decoder()
        used = (*self._texts.values(), str(self._template or ""))
        spare = (added[i].content for i in sorted(added) if added[i].special)
        return next((text for text in spare if not any(text in each for each in used)), "<|pad|>")


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
    refusals = hub.errors.HFValidationError, hub.errors.LocalEntryNotFoundError, hub.errors.RepositoryNotFoundError
    files = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE]
    try:
        return Path(hub.snapshot_download(path, allow_patterns=files))
    except refusals as error:
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


def _listed_special(source: dict[str, Any]) -> set[str]:
    """The special tokens that tokenizer_config.json has in lists, as older and newer versions write them."""
    extra: list[Any] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = source.get(name) or ()
        extra += listed.values() if isinstance(listed, dict) else listed
    decoder = source.get("added_tokens_decoder") or {}
    extra += [token for token in decoder.values() if isinstance(token, dict) and token.get("special")]
    return {text for token in extra if isinstance(text := _content(token), str) and text}


def _content(token: Any) -> str | None:
    """A special token is written as text, or as a mapping with its `content`."""
    return token["content"] if isinstance(token, dict) else token
