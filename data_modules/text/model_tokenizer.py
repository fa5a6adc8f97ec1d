"""Tokenizer of a pretrained language model, from a Hugging Face folder or hub id."""

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
OF_TEMPLATES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)  # errors in templates


class FolderTokenizer(Tokenizer):
    """The tokenizer of a Hugging Face folder or hub id, read from tokenizer.json, with the model's chat template.

    Args:
        path: a folder that contains tokenizer.json, or a hub id such as `openai-community/gpt2`, which is downloaded
            once.
        eos: the token that ends replies, if the folder does not define one.
        pad: the padding token, which no model reads. By default the folder's padding token; if the folder defines none,
            or defines it as eos, an unused special token. A new token, such as `<|pad|>`, gets the next free id.

    Raises:
        ValueError: there is no tokenizer.json or no eos token, or `pad` equals eos.
    """

    def __init__(self, path: str, eos: str | None = None, pad: str | None = None) -> None:
        super().__init__()
        self.path = path
        folder = self._folder = _local(path)
        backend = _read(folder / "tokenizer.json")
        self._source = _json(folder / "tokenizer_config.json")
        declared = _json(folder / "special_tokens_map.json") | self._source
        _refuse_odd_tokens(declared, folder)
        arguments = {"pad_token": pad, "eos_token": eos, "unk_token": None}
        special = {name: token for name, text in arguments.items() if (token := text or _content(declared.get(name)))}
        if pad is None and special.get("pad_token") in (None, special.get("eos_token")):
            special.pop("pad_token", None)
        tokens = {name: _content(token) for name, token in declared.items() if name.endswith("_token")}
        self._texts = {name: token for name, token in tokens.items() if isinstance(token, str)} | special
        special.setdefault("pad_token", self._spare(backend))
        self._texts |= special
        self._check(special)
        is_special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        new = [special[name] for name in ("pad_token", "eos_token") if special[name] not in is_special]
        backend.add_special_tokens(new)  # declared ones stay as they are: they may strip white space
        self._take(backend, special)
        self._begin = self._first(backend)

    def _first(self, backend: Any) -> list[int]:
        """The ids that the tokenizer puts before a text. Ids after a text, such as eos, are left to the reply."""
        encoding = backend.encode(self._special["eos_token"], add_special_tokens=True)
        pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return [token for token, _ in takewhile(lambda pair: pair[1], pairs)]

    def fit(self, corpus: Iterable[str] = ()) -> Self:
        """Do nothing, because the vocabulary is fixed."""
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
        """Render a chat as text.  Raises ValueError: the template refuses the messages, with its reason."""
        try:
            return self._renderer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **self._texts
            )
        except (library("jinja2").TemplateError, *OF_TEMPLATES) as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"prompt: the chat template of {self.path} refuses the messages: {cause}") from None

    @cached_property
    def _renderer(self) -> Any:
        """The renderer of transformers. It gets only the template, so no code in the model's folder runs."""
        backend = library("tokenizers").Tokenizer(library("tokenizers").models.WordLevel({"": 0}, unk_token=""))
        return library("transformers").PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=self._template)

    @cached_property
    def _template(self) -> Any:
        """The template as a text, or as a list of mappings with `name` and `template`; None without a template."""
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
            raise ValueError(f"eos: the tokenizer {self.path} has no eos token: give one, such as `eos: <|endoftext|>`")
        if special["eos_token"] == special["pad_token"]:
            raise ValueError(
                f"pad: {special['pad_token']!r} is also the eos token of {self.path}, so padding would look like the "
                "end of a reply: give another token, or leave pad out"
            )

    def _spare(self, backend: Any) -> str:
        """A special token for padding: an existing one that has no other use, or else a new one."""
        added = backend.get_added_tokens_decoder()
        used = (*self._texts.values(), str(self._template or ""))
        spare = (added[i].content for i in sorted(added) if added[i].special)
        return next((text for text in spare if not any(text in use for use in used)), "<|pad|>")


def _local(path: str) -> Path:
    """The folder itself, or the local snapshot of the tokenizer files of a hub id."""
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
        raise ValueError(f"path: {path} is neither a folder nor an available hub id: {cause}") from None


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; {} if there is no file.  Raises ValueError: the file holds something else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"path: {path} is damaged: {error}: download or save the tokenizer again") from error
    if not isinstance(content, dict):
        raise ValueError(f"path: {path} must contain a JSON object, but contains a {type(content).__name__}")
    return content


def _read(path: Path) -> Any:
    """Load a tokenizer.json.  Raises ValueError: the file is damaged."""
    try:
        return library("tokenizers").Tokenizer.from_str(path.read_bytes().decode("utf-8-sig"))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"path: {path} is damaged: {reason}: download or save the tokenizer again") from error


def _refuse_odd_tokens(declared: dict[str, Any], folder: Path) -> None:
    """Check the special tokens.  Raises ValueError: one of them is neither a text nor an object with `content`."""
    for name in ("eos_token", "pad_token", "unk_token"):
        token = declared.get(name)
        if token is not None and not isinstance(token.get("content") if isinstance(token, dict) else token, str):
            raise ValueError(f"path: {folder / 'tokenizer_config.json'}: {name}: got {token!r}, must be a text")


def _listed_special(source: dict[str, Any]) -> set[str]:
    """The special tokens that tokenizer_config.json has in lists, in old and new formats of transformers."""
    extra: list[Any] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = source.get(name) or ()
        extra += listed.values() if isinstance(listed, dict) else listed
    decoder = source.get("added_tokens_decoder") or {}
    extra += [token for token in decoder.values() if isinstance(token, dict) and token.get("special")]
    return {text for token in extra if isinstance(text := _content(token), str) and text}


def _content(token: Any) -> str | None:
    """The text of a special token that is given as text or as a mapping with `content`."""

    return token["content"] if isinstance(token, dict) else token
