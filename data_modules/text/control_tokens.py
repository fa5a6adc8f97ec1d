"""Control tokens, such as `<|im_end|>`: a template may write them; what people and models write stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

NAME = "\ufdd0"  # not a character, by Unicode: it may stand in programs, and in no text
DIGIT = 0xFDD1  # of the sixteen digits of a name
SHIELDS = 0x100000  # of private use: the first one that stands for a character of a text
BYTE = re.compile("<0x[0-9A-F]{2}>")  # a piece of models that fall back on bytes
TAG = re.compile(r"[<\[{(|＜｜].*\w.*[>\]})|＞｜]", re.DOTALL)


@dataclass(frozen=True)
class Encoded:
    """The ids of a text, and where in it each stands."""

    ids: list[int]
    offsets: Sequence[tuple[int, int]]
    text: str


class ControlTokens:
    """The control tokens of a tokenizer, and encoders in which no text can spell one.

    Control tokens are the special ones, and of the other added tokens those that look like a tag or that the template
    writes, such as `<think>`. The latter are words of the model: a reply may hold them, a prompt may not.

    In the encoder each control token has a name that no text has, in its list of added tokens and in the vocabulary of
    the model: so neither finds one in a text, whatever the normalizer makes of it. Where control tokens are meant, they
    are written by these names.

    Args:
        backend: a tokenizers.Tokenizer.
        special: texts that are control tokens too if the vocabulary has them, as the folder's config says.
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
        unlisted = [text for text in names if text not in added]  # special by the folder's config alone
        content["added_tokens"] += [flags | {"content": text, "special": True, "id": 0} for text in unlisted]
        self._reader = _reader(backend, content["added_tokens"])
        self._read = {self._reader.token_to_id(text): text for text in self.ids}
        self._encoder = type(backend).from_str(json.dumps(_renamed(content, names)))
        self._ids = {self._encoder.token_to_id(names.get(text, text)): ids[text] for text in [*added, *names]}
        self._normalizer = backend.normalizer
        self._edges = {edge for text in self.ids for edge in ((text.strip() or text)[0], (text.strip() or text)[-1])}
        self._dangerous: dict[str, bool] = {}  # whether a character may be the edge of a control token
        self._shields: dict[str, str] = {}  # what stands for a character
        self._said = _any_of(self.words)
        self._spelled = _any_of({_plain(text) for text in self.ids})

    def encode(self, text: str, reply: bool = False) -> Encoded:
        """Of a text, nothing added, without a control token; a reply may hold the model's words.

        Raises ValueError: it holds U+FDD0, which is no character.
        """
        if reply and self._said.search(text):
            return self.encode_shielded(self.shielded(text, reply))
        return self._encoded(_without_name(text))

    def encode_shielded(self, text: str) -> Encoded:
        """Of a text in which all control tokens are meant that no shield stands in."""
        parts, end = [], 0
        for token, start, stop in self._written(text):
            parts += [text[end:start], self._names[token]]
            end = stop
        return self._encoded(self.unshielded("".join(parts) + text[end:]))

    def _encoded(self, text: str) -> Encoded:
        encoding = _encoding(self._encoder, text)
        return Encoded([self._ids.get(number, number) for number in encoding.ids], encoding.offsets, text)

    def written(self, text: str) -> list[str]:
        """The control tokens in their order, without those that a shield stands in."""
        return [token for token, *_ in self._written(text)]

    def _written(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Each with its first character and the one behind its last."""
        encoding = _encoding(self._reader, text)
        for number, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if number in self._read:
                token, found = self._read[number], text[start:stop]
                spelled = token if token in found else found.strip() or found  # blanks beside it remain
                start += found.index(spelled)
                yield token, start, start + len(spelled)

    # ---- texts within a template

    def shielded(self, text: str, reply: bool = False) -> str:
        """With a shield in place of each character that a control token may begin or end with.

        It is as long, and white space and almost all letters are as they were: most templates do the same to it.
        """
        _without_name(text)
        parts, end = list[str](), 0
        for word in self._said.finditer(text) if reply else ():
            parts += [*map(self._shield, text[end : word.start()]), word[0]]
            end = word.end()
        return "".join([*parts, *map(self._shield, text[end:])])

    def shielded_where_spelled(self, text: str, reply: bool = False) -> str:
        """With shields in the control tokens alone, in letters of any case: for templates that look for tags."""
        characters = list(_without_name(text))
        for spelled in self._spelled.finditer(_plain(text)):
            first, last = spelled.start(), spelled.end() - 1
            if not (reply and text[first : last + 1] in self.words):
                characters[first], characters[last] = self._certain(text[first]), self._certain(text[last])
        return "".join(characters)

    def spelled(self, text: str) -> list[str]:
        """What in a text spells a control token, in letters of any case."""
        return [text[slice(*spelled.span())] for spelled in self._spelled.finditer(_plain(text))]

    def unshielded(self, text: str) -> str:
        """The text that the shields stand for."""
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
    """Raises ValueError: tokenizers breaks on the text, as where two tokens that take the blanks beside them meet."""
    try:
        return backend.encode(text, add_special_tokens=False)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a panic of Rust is no Exception
            raise
        raise ValueError(f"the tokenizer cannot encode this text: {str(error)[:100]}") from error


def _is_control(text: str, template: str) -> bool:
    """Whether an added token that is not special acts as a control token. White space and plain words do not."""
    return bool(TAG.fullmatch(text)) or (text in template and re.search(r"[^\w\s]", text) is not None)


def _name(number: int) -> str:
    return NAME + "".join(chr(DIGIT + int(digit, 16)) for digit in f"{number:x}") + NAME


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """The longest comes first; of no text nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _plain(text: str) -> str:
    """Character by character, small letters without forms such as full width."""
    forms = (normalize("NFKC", character).lower() for character in text)
    return "".join(form if len(form) == 1 else character for form, character in zip(forms, text, strict=True))


def _without_name(text: str) -> str:
    if NAME in text:
        raise ValueError("the text holds U+FDD0, which is no character: take it out")
    return text


def _reader(backend: Any, added: list[dict[str, Any]]) -> Any:
    """Finds added tokens in a text as `backend` does, and nothing else."""
    from tokenizers import AddedToken, Tokenizer, models

    reader = Tokenizer(models.WordLevel({NAME: 0}, unk_token=NAME))
    if backend.normalizer is not None:
        reader.normalizer = backend.normalizer
    for token in added:
        content = {name: value for name, value in token.items() if name != "id"}
        reader.add_tokens([AddedToken(**content)])
    return reader


def _renamed(content: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """tokenizer.json with the control tokens by their names; one character that the model knows remains."""
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
