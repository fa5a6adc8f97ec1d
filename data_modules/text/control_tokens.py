"""Control tokens, such as `<|im_end|>`: only the chat template can write them, never text from people or models."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

NAME = "\ufdd0"  # a Unicode noncharacter, which programs may use and text does not contain
DIGIT = 0xFDD1  # the first of sixteen noncharacters that stand for the hexadecimal digits of a name
SHIELDS = 0x100000  # the first private-use character that may stand in for a character of a text
BYTE = re.compile("<0x[0-9A-F]{2}>")  # a vocabulary entry of models with byte fallback
TAG = re.compile(r"[<\[{(|＜｜].*\w.*[>\]})|＞｜]", re.DOTALL)


@dataclass(frozen=True)
class Encoded:
    """The ids of a text, and the position of each id in the text."""

    ids: list[int]
    offsets: Sequence[tuple[int, int]]
    text: str


class ControlTokens:
    """The control tokens of a tokenizer, and encoders in which no text can spell one.

    Control tokens are the special tokens, and those other added tokens that look like a tag or that the template
    writes, such as `<think>`. The second kind are called `words` of the model: a reply may contain them, a prompt may
    not.

    The encoder renames each control token, both in its list of added tokens and in the vocabulary of the model, to a
    name that occurs in no text. The encoder therefore finds no control token in a text, whatever the normalizer does.
    Code that needs a control token writes the new name of the token.

    Args:
        backend: a tokenizers.Tokenizer.
        special: further special tokens from the folder's config; those that are not in the vocabulary are ignored.
        template: the source of the chat template.
    """

    def __init__(self, backend: Any, special: Collection[str] = (), template: str = "") -> None:
        content = json.loads(backend.to_str())
        added = {token["content"]: token for token in content["added_tokens"]}
        falls_back = content["model"].get("byte_fallback", False)
        ids = {text: backend.token_to_id(text) for text in [*added, *special]}
        self.ids = {
            text: number
            for text, number in ids.items()
            if number is not None
            and not (falls_back and BYTE.fullmatch(text))
            and (text in special or added[text]["special"] or _is_control(text, template))
        }
        unknown = content["model"].get("unk_token")
        self.unknown = content["model"].get("unk_id") if unknown is None else backend.token_to_id(unknown)
        self.words = {text for text in self.ids if text not in special and not added[text]["special"]}
        names = self._names = {text: _name(number) for text, number in self.ids.items()}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        unlisted = [text for text in names if text not in added]  # special only by the folder's config
        content["added_tokens"] += [flags | {"content": text, "special": True, "id": 0} for text in unlisted]
        self._reader = _reader(backend, content["added_tokens"])
        self._read = {self._reader.token_to_id(text): text for text in self.ids}
        self._encoder = type(backend).from_str(json.dumps(_renamed(content, names)))
        self._ids = {self._encoder.token_to_id(names.get(text, text)): ids[text] for text in [*added, *names]}
        self._normalizer = backend.normalizer
        self._edges = {edge for text in self.ids for edge in ((text.strip() or text)[0], (text.strip() or text)[-1])}
        self._dangerous: dict[str, bool] = {}  # character → whether a control token may begin or end with it
        self._shields: dict[str, str] = {}  # character → its stand-in
        self._words_pattern = _any_of(self.words)
        self._spelled = _any_of({_plain(text) for text in self.ids})

    def encode(self, text: str, reply: bool = False) -> Encoded:
        """Encode a text as plain text. If `reply`, the text may contain the model's `words`.

        Raises ValueError: the text contains U+FDD0, a Unicode noncharacter.
        """
        if reply and self._words_pattern.search(text):
            return self.encode_shielded(self.shielded(text, reply))
        return self._encoded(_without_name(text))

    def encode_shielded(self, text: str) -> Encoded:
        """Encode a text in which every control token without a shield is a real control token."""
        parts, end = [], 0
        for token, start, stop in self._spans(text):
            parts += [text[end:start], self._names[token]]
            end = stop
        return self._encoded(self.unshielded("".join(parts) + text[end:]))

    def _encoded(self, text: str) -> Encoded:
        encoding = _encoding(self._encoder, text)
        return Encoded([self._ids.get(number, number) for number in encoding.ids], encoding.offsets, text)

    def tokens_in(self, text: str) -> list[str]:
        """The control tokens in a text, in order, except shielded ones."""
        return [token for token, *_ in self._spans(text)]

    def _spans(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Each control token in the text, with its start and end (exclusive) in characters."""
        encoding = _encoding(self._reader, text)
        for number, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if number in self._read:
                token, piece = self._read[number], text[start:stop]
                spelled = token if token in piece else piece.strip() or piece  # without white space beside it
                start += piece.index(spelled)
                yield token, start, start + len(spelled)

    # ---- texts within a template

    def shielded(self, text: str, reply: bool = False) -> str:
        """The text with a shield in place of each character that a control token may begin or end with.

        The length, white space and almost all letters stay the same, so most templates treat the shielded text in the
        same way as the original.
        """
        _without_name(text)
        parts, end = list[str](), 0
        for word in self._words_pattern.finditer(text) if reply else ():
            parts += [*map(self._shield, text[end : word.start()]), word[0]]
            end = word.end()
        return "".join([*parts, *map(self._shield, text[end:])])

    def shielded_where_spelled(self, text: str, reply: bool = False) -> str:
        """The text with shields only in control tokens, ignoring case; for templates that search for tags."""
        characters = list(_without_name(text))
        for spelled in self._spelled.finditer(_plain(text)):
            first, last = spelled.start(), spelled.end() - 1
            if not (reply and text[first : last + 1] in self.words):
                characters[first], characters[last] = self._certain(text[first]), self._certain(text[last])
        return "".join(characters)

    def spelled(self, text: str) -> list[str]:
        """The parts of a text that spell a control token, ignoring case."""
        return [text[slice(*spelled.span())] for spelled in self._spelled.finditer(_plain(text))]

    def unshielded(self, text: str) -> str:
        """Restore the original text: replace each shield by its character."""
        return text.translate({ord(shield): character for character, shield in self._shields.items()})

    def _shield(self, character: str) -> str:
        if character not in self._dangerous:
            looks = {character, *character.lower(), *character.upper(), *normalize("NFKC", character)}
            if self._normalizer is not None:
                looks.update(self._normalizer.normalize_str(character))
            self._dangerous[character] = ord(character) >= SHIELDS or not looks.isdisjoint(self._edges)
        return self._certain(character) if self._dangerous[character] else character

    def _certain(self, character: str) -> str:
        return self._shields.setdefault(character, chr(SHIELDS + len(self._shields)))


def _encoding(backend: Any, text: str) -> Any:
    """Encode a text.  Raises ValueError: tokenizers fails, for example if two tokens strip the same white space."""
    try:
        return backend.encode(text, add_special_tokens=False)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a Rust panic does not inherit from Exception
            raise
        raise ValueError(f"the tokenizer cannot encode this text: {str(error)[:100]}") from error


def _is_control(text: str, template: str) -> bool:
    """Whether an added token that is not special is a control token. White space and plain words are not."""
    return bool(TAG.fullmatch(text)) or (text in template and re.search(r"[^\w\s]", text) is not None)


def _name(number: int) -> str:
    return NAME + "".join(chr(DIGIT + int(digit, 16)) for digit in f"{number:x}") + NAME


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """A pattern that matches any of the texts, preferring longer texts; with no texts it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _plain(text: str) -> str:
    """Convert a text to lower case and remove compatibility forms such as full width, without changing its length."""
    forms = (normalize("NFKC", character).lower() for character in text)
    return "".join(form if len(form) == 1 else character for form, character in zip(forms, text, strict=True))


def _without_name(text: str) -> str:
    if NAME in text:
        raise ValueError("the text contains U+FDD0, which is not a character: remove it")
    return text


def _reader(backend: Any, added: list[dict[str, Any]]) -> Any:
    """A tokenizer that only splits a text at added tokens, in the same way as `backend`."""
    from tokenizers import AddedToken, Tokenizer, models

    reader = Tokenizer(models.WordLevel({NAME: 0}, unk_token=NAME))
    if backend.normalizer is not None:
        reader.normalizer = backend.normalizer
    for token in added:
        content = {name: value for name, value in token.items() if name != "id"}
        reader.add_tokens([AddedToken(**content)])
    return reader


def _renamed(content: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename the control tokens in tokenizer.json's content. Single characters of the vocabulary keep their name."""
    pieces = {text: name for text, name in names.items() if len(text) > 1}
    model = dict(content["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {pieces.get(text, text): number for text, number in model["vocab"].items()}
    else:  # Unigram
        model["vocab"] = [[pieces.get(text, text), score] for text, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [
            [first, second]
            for first, second in model["merges"]
            if pieces.keys().isdisjoint((first, second, first + second))
        ]
    if model.get("unk_token") in pieces:
        model["unk_token"] = pieces[model["unk_token"]]
    added = [
        token | {"single_word": False, "content": names[token["content"]]} if token["content"] in names else token
        for token in content["added_tokens"]
    ]
    return content | {"model": model, "added_tokens": added, "post_processor": None}
