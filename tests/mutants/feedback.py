"""Damaged feedback files: one line of any kind of judgement is damaged. Given to `check`, every fourth to a fit."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mutants.verdicts import Mutant

from data_modules.feedback import FeedbackDataModule
from data_modules.feedback.__main__ import main
from data_modules.text.tokenizer import WordTokenizer

LINES: tuple[dict[str, Any], ...] = (
    {"prompt": "a ?", "responses": ["x"], "score": 0.5, "id": "1", "source": "ana"},
    {"prompt": "b ?", "responses": ["x", "y"], "score": [0.2, None], "critique": [None, "no"], "episode": "e"},
    {"prompt": "c ?", "expected": "x y", "meta": {"run": "r", "said_by": {"expected": "ana"}}},
    {
        "prompt": "a b ?",
        "responses": ["x", "y", "z"],
        "ranking": "B > A = C",
        "meta": {"finished": [True, False, True]},
    },
    {"prompt": "d ?", "responses": ["x y z"], "score": 0, "spans": [{"start": 2, "end": 3}]},
    {"prompt": "e ?", "responses": ["x", "y"], "preference": 0.7},
    {"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "responses": ["x"], "score": 1},
    {"prompt": "f ?", "responses": ["x y"], "steps": [{"end": 1, "label": 1}, {"end": 3, "label": 0}]},
)
TOKENIZER = WordTokenizer().fit(["a b c d e f ? x y z no"])
WRONG: dict[str, tuple[Any, ...]] = {  # values that no field of this name may have
    "prompt": (5, True, "", " ", [], {}, [5], ["a"], [{"role": "human", "content": "a"}], [{"role": "user"}]),
    "responses": (5, "x", [], {}, [""], [None], [["x"]], [5], [{"role": "assistant", "content": "x"}]),
    "score": ("high", "4/5", "0.5", True, [], {}, [0.5] * 9, [[0.5]], {"A": 1}),
    "critique": (5, False, "", [], {}, ["no"] * 9),
    "expected": (5, True, "", "  ", [], ["x"], {}),
    "ranking": (5, [1, 0], "b > a", "A >", "A > > B", "> A", "A < B", "A > Q", "A > A",
                "A = A > B", "1 > 2", "B ＞ A"),
    "preference": ("A", "0.7", [0.7], True, -0.1, 1.5, 70),
    "spans": (5, "0-3", [5], [[0, 3]], [{}], [{"start": 0}], [{"start": 3, "end": 2}], [{"start": -1, "end": 1}],
              [{"start": 0, "end": 999}], [{"start": 0.5, "end": 1}], [{"start": 0, "end": 1, "text": "x"}]),
    "steps": (5, [5], [{"end": 0, "label": 1}], [{"end": 99, "label": 1}], [{"end": 1}], [{"end": 1, "label": "+"}]),
    "source": (5, [], {}, "", ["ana"], True),
    "episode": (5, [], {}, ""),
    "id": (5, [], {}, "", 1.5),
    "meta": (5, "x", [], [1], True, {"said_by": 5}, {"said_by": ["ana"]}, {"finished": "no"}, {"finished": 1},
             {"finished": None}, {"finished": [True] * 9}, {"finished": []}),
}  # fmt: skip
Spoilt = tuple[str, bytes, tuple[str, ...]]  # description, damaged line, and words of which the message must have one
Damage = Callable[[random.Random, dict[str, Any]], Spoilt]


def mutants(seed: int, count: int, folder: Path) -> Iterator[Mutant]:
    chance, damages = random.Random(seed), list(DAMAGES.items())
    for number in range(count):
        name, damage = damages[number % len(damages)]
        fits = number // len(damages) % 4 == 3
        whole = [
            line for line in LINES if not (fits and isinstance(line["prompt"], list))
        ]  # WordTokenizer has no chat template
        place = chance.randrange(len(whole))
        description, spoilt, words = damage(chance, json.loads(json.dumps(whole[place])))
        sound = [json.dumps(line).encode() for line in whole]
        lines = [*sound[:place], spoilt, *sound[place + 1 :]]
        path = folder / f"{number}.jsonl"
        content = b"\n".join(lines) + b"\n"
        if name in WHOLE:
            description, content, words = WHOLE[name](sound)
            place = int(words[0]) - 1
        path.write_bytes(content)
        names = tuple(f"{path}:{place + 1}: {word}" for word in words[name in WHOLE :]) or (f"{path}:{place + 1}: ",)
        yield Mutant(
            "feedback", name, f"line {place + 1} of {path.name}, {description}", names, partial(_attempt, path, fits),
            refusals=(ValueError,) if fits else (), may_be_accepted=name in HARMLESS,
        )  # fmt: skip


def _attempt(path: Path, fits: bool) -> int:
    if not fits:
        return main(["check", str(path)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FeedbackDataModule(str(path), TOKENIZER, use=("score", "ranking", "preference", "expected")).setup("fit")
    return 0


def _line(description: str, line: Any, *words: str) -> Spoilt:
    return description, json.dumps(line).encode(), words


def _wrong(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    field = chance.choice([*WRONG])
    value = chance.choice(WRONG[field])
    return _line(f"{field}: {value!r}", line | {field: value}, field)


def _own_wrong(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    """Give a wrong value to a field that the line has."""
    field = chance.choice([*line])
    value = chance.choice(WRONG[field])
    return _line(f"{field}: {value!r}", line | {field: value}, field)


def _unknown(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    field = chance.choice(("rating", "reward", "label", "text", "answer", "x" * 3000, "", "prompt ", "Prompt", "ключ"))
    return _line(f"{field[:20]!r} beside it", line | {field: 1}, field[:20])


def _misspelt(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    field = chance.choice([*line])
    at = chance.randrange(len(field))
    name = field[:at] + field[at + 1 :] if chance.random() < 0.5 else field[:at] + field[at] + field[at:]
    line[name] = line.pop(field)
    return _line(f"{field} is {name}", line, f"{name}: unknown field")


def _large(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    number = chance.choice(("NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000, "-" + "9" * 4500, "1e301"))
    field = chance.choice(("score", "preference"))
    line = {"prompt": "a", "responses": ["x", "y"]} if field == "preference" else {"prompt": "a", "responses": ["x"]}
    return f"{field}: {number[:20]}", f'{json.dumps(line)[:-1]}, "{field}": {number}}}'.encode(), (field,)


def _out_of_range(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    value = chance.choice((-1, 2, 4, 1.0001, -1e-9, 10**17, 1e300))
    return _line(f"score: {value}", {"prompt": "a", "responses": ["x"], "score": value}, "score")


def _missing(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    field = "prompt" if chance.random() < 0.5 or "expected" in line else "responses"
    line = {name: value for name, value in line.items() if name != field}
    return _line(f"without {field}", line, field)


def _surrogate(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    field = chance.choice(("prompt", "expected", "source", "id", "episode", "meta"))
    text = chance.choice(("\ud83d", "a \udc00 b", "x\udfff"))
    return _line(f"half a pair in {field}", line | {field: {"a": text} if field == "meta" else text}, field)


def _nested(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    depth, field = chance.choice((60, 200, 400, 985, 5000, 100_000)), chance.choice(("meta", "score", "prompt"))
    line.pop(field, None)
    text = f'{json.dumps(line)[:-1]}, "{field}": {{"a": {"[" * depth}{"]" * depth}}}}}'
    return f"{depth} brackets in {field}", text.encode(), (field, "not JSON")


def _duplicate_key(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    field = chance.choice([*line])
    return f"{field} twice", f'{json.dumps(line)[:-1]}, "{field}": 1}}'.encode(), (field,)


def _cut_line(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    text = json.dumps(line).encode()
    left = chance.randrange(1, len(text))
    return f"cut to {left} bytes", text[:left], ("not JSON",)


def _bytes(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    text = bytearray(json.dumps(line).encode())
    text.insert(chance.randrange(1, len(text)), chance.choice((0xFF, 0xC0, 0x80, 0xFE)))
    return "a byte that is not UTF-8", bytes(text), ("byte ",)


def _binary(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    return "random bytes", b"\x89" + chance.randbytes(200).replace(b"\n", b""), ("byte ",)


def _no_object(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    text = chance.choice((b"5", b"null", b'"x"', b"[1, 2]", b"true", b"prompt: a", b"a,b,c", b"{'prompt': 'a'}", b"#"))
    return text.decode(), text, ("a line must be an object", "not JSON")


def _other_format(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}]
    field, line = chance.choice(
        (
            ("messages", {"messages": chat}),
            ("chosen", {"prompt": "a", "chosen": "x", "rejected": "y"}),
            ("chosen", {"chosen": chat, "rejected": chat}),
            ("completion", {"prompt": "a", "completion": "x", "label": True}),
            ("conversations", {"conversations": [{"from": "human", "value": "a"}]}),
            ("instruction", {"instruction": "a", "input": "", "output": "x"}),
        )
    )
    return _line(f"a line with {field}", line, f"{field}: this line is in")


def _emoji_span(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    emoji = "😀" * chance.randint(1, 4)
    end = len((emoji + " bad").encode("utf-16-le")) // 2
    spans = [{"start": end - 3, "end": end}]
    return _line("units of UTF-16", {"prompt": "a", "responses": [emoji + " bad"], "spans": spans}, "spans")


def _long_ranking(chance: random.Random, line: dict[str, Any]) -> Spoilt:
    line = {"prompt": "a", "responses": ["x"] * 3000, "ranking": "A" + " > A" * 2999}
    return _line("3,000 times A", line, "ranking")


def _as_array(sound: list[bytes]) -> Spoilt:
    return "a JSON array", b"[\n" + b",\n".join(sound) + b"\n]\n", ("1", "this is a JSON array")


def _as_utf16(sound: list[bytes]) -> Spoilt:
    return "UTF-16", b"\n".join(sound).decode().encode("utf-16"), ("1", "the file is UTF-16")


def _one_id(sound: list[bytes]) -> Spoilt:
    return "the first line again at the end", b"\n".join([*sound, sound[0]]), (str(len(sound) + 1), "id")


def _marked(sound: list[bytes]) -> Spoilt:
    return "BOM, CRLF and blank lines", b"\xef\xbb\xbf" + b"\r\n\r\n".join(sound), ("1",)


WHOLE = {"array": _as_array, "UTF-16": _as_utf16, "id twice": _one_id, "BOM and CRLF": _marked}
HARMLESS = ("BOM and CRLF",)
DAMAGES: dict[str, Damage] = {
    "wrong value": _wrong,
    "wrong value of its own": _own_wrong,
    "unknown field": _unknown,
    "misspelt field": _misspelt,
    "no number": _large,
    "out of range": _out_of_range,
    "missing field": _missing,
    "half of a surrogate pair": _surrogate,
    "nested": _nested,
    "key twice": _duplicate_key,
    "truncated line": _cut_line,
    "byte that is not UTF-8": _bytes,
    "binary": _binary,
    "no object": _no_object,
    "another format": _other_format,
    "span in UTF-16": _emoji_span,
    "long ranking": _long_ranking,
    **dict.fromkeys(WHOLE, _wrong),
}
