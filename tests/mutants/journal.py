"""Damaged journals of run folders, given to `python -m lightning_nlf.tracking sync`.

Each is sent together with a valid run, which must arrive. All records must be in the store exactly once, even after a
second `sync`. A violation raises AssertionError, which counts as a traceback.
"""

from __future__ import annotations

import functools
import json
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from mutants.verdicts import Mutant
from sqlalchemy import Engine, event

from lightning_nlf.tracking.__main__ import main
from lightning_nlf.tracking.journal import JOURNAL

START = {"kind": "start", "time": 1, "journal": "", "experiment": "e", "run_name": "r", "tracking_uri": None}
LINES: list[dict[str, Any]] = [
    START,
    {"kind": "params", "time": 2, "values": {"lr": "0.1"}},
    {"kind": "tags", "time": 3, "values": {"git": "abc"}},
    {"kind": "metrics", "time": 4, "step": 1, "values": {"loss": 0.5, "kl": "nan"}},
    {"kind": "artifact", "time": 5, "path": "note.txt"},
    {"kind": "metrics", "time": 6, "step": 2, "values": {"loss": 0.25, "kl": 0.0}},
    {"kind": "end", "time": 7, "status": "FINISHED"},
]
WRONG = [None, True, -1, 1.5, 10**30, float("nan"), float("inf"), "", "x", [], {}, [1], {"a": []}, "'; --", "\ud800"]


def mutants(seed: int, count: int, folder: Path) -> Iterator[Mutant]:
    """`count` damaged journals, with one database for all."""
    rng = random.Random(seed)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    event.listen(Engine, "connect", _hurried)
    _sound(folder / "first")
    assert main(["sync", str(folder / "first"), "--tracking_uri", uri]) == 0
    for number in range(count):
        name, spoil = MUTATIONS[number % len(MUTATIONS)]
        bad = folder / f"bad{number}"
        _sound(bad)
        description, names, may_be_accepted = spoil(rng, bad)
        # Each journal needs a new identity, because runs in the database are found by it.
        attempt = functools.partial(_attempt, bad, folder / f"good{number}", uri, folder / "mlflow.db")
        yield Mutant("journal", name, f"{bad.name}: {description}", names, attempt, (), may_be_accepted)


def _hurried(connection: Any, record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")  # the database is temporary


def _sound(run_dir: Path, lines: list[dict[str, Any]] = LINES) -> None:
    run_dir.mkdir()
    (run_dir / "note.txt").write_text("n")
    _write(run_dir, _texts(run_dir, lines))


def _texts(run_dir: Path, lines: list[dict[str, Any]] = LINES) -> list[bytes]:
    records = [line | ({"journal": f"j-{run_dir.name}"} if line["kind"] == "start" else {}) for line in lines]
    return [json.dumps(line, separators=(",", ":")).encode() for line in records]


def _write(run_dir: Path, texts: list[bytes], end: bytes = b"\n") -> None:
    (run_dir / JOURNAL).write_bytes(b"\n".join(texts) + end)


def _attempt(bad: Path, good: Path, uri: str, store: Path) -> int:
    _sound(good, [LINES[0], LINES[-1]])
    code = main(["sync", str(bad), str(good), "--tracking_uri", uri])
    once = _rows(store)
    assert ("j-" + good.name, "FINISHED") in once[0], f"{good.name} waited for {bad.name}"
    assert main(["sync", str(bad), "--tracking_uri", uri]) == code, "a second sync gives another exit code"
    assert _rows(store) == once, "a record is in the store twice"
    return code


def _rows(store: Path) -> tuple[list[Any], int]:
    query = "SELECT tags.value, status FROM runs JOIN tags USING (run_uuid) WHERE tags.key = 'mlflow.journal'"
    with closing(sqlite3.connect(store)) as connection:
        (metrics,) = connection.execute("SELECT count(*) FROM metrics").fetchone()
        return sorted(connection.execute(query).fetchall()), metrics


# Description of the damage, words of which the message must have one, and whether exit code 0 is right.
Spoilt = tuple[str, tuple[str, ...], bool]


def _line(rng: random.Random, run_dir: Path, text: Callable[[bytes], bytes], description: str) -> Spoilt:
    texts = _texts(run_dir)
    number = rng.randrange(len(texts))
    texts[number] = text(texts[number])
    _write(run_dir, texts)
    return f"line {number + 1} {description}", (f"{JOURNAL}:{number + 1}:",), False


def _truncated(rng: random.Random, run_dir: Path) -> Spoilt:
    return _line(rng, run_dir, lambda text: text[: rng.randrange(1, len(text) - 1)], "is cut")


def _torn_end(rng: random.Random, run_dir: Path) -> Spoilt:
    texts = _texts(run_dir)
    _write(run_dir, [*texts, texts[3][: rng.randrange(1, 20)]], end=b"")
    return "ends within a line", (), True


def _binary(rng: random.Random, run_dir: Path) -> Spoilt:
    junk = bytes(byte for byte in rng.randbytes(rng.randrange(1, 60)) if byte != 10) + b"\xff"
    return _line(rng, run_dir, lambda text: rng.choice([junk, b"\0" * 40, text[:9] + junk + text[9:]]), "is binary")


def _no_object(rng: random.Random, run_dir: Path) -> Spoilt:
    text = rng.choice([b"", b"null", b"[]", b"7", b'"start"', b"{}", b"[[[", b"NaN", b"<html>", b"kind,time"])
    return _line(rng, run_dir, lambda _: text, f"is {text!r}")


def _deep(rng: random.Random, run_dir: Path) -> Spoilt:
    depth = rng.choice([2000, 100_000])
    value = rng.choice([b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth])
    return _line(rng, run_dir, lambda text: text[:-1] + b',"deep":' + value + b"}", f"is {depth} deep")


def _huge_number(rng: random.Random, run_dir: Path) -> Spoilt:
    digits = rng.choice([400, 5000])
    return _line(rng, run_dir, lambda text: text.replace(b'"time":', b'"time":' + b"9" * digits, 1), f"{digits} digits")


def _wrong_value(rng: random.Random, run_dir: Path) -> Spoilt:
    lines = [dict(line) for line in LINES]
    number = rng.randrange(len(lines))
    keys = [key for key in lines[number] if key not in ("tracking_uri", "run_name")]
    key = rng.choice(keys)
    fitting = {"time": (), "step": (-1,), "path": ("x", "'; --"), "values": ({},), "experiment": ("x", "'; --")}
    value = rng.choice([value for value in WRONG if value not in fitting.get(key, ("x",) if key == "journal" else ())])
    texts = _texts(run_dir)
    line = json.loads(texts[number]) | {key: value}
    texts[number] = json.dumps(line).encode()
    _write(run_dir, texts)
    # The start record is valid even if its experiment is null, but then the run is refused.
    names = (JOURNAL,) if number == 0 else (f"{JOURNAL}:{number + 1}:",)
    return f"line {number + 1}: {key} is {value!r}", names, False


def _wrong_entry(rng: random.Random, run_dir: Path) -> Spoilt:
    number = rng.choice([1, 2, 3])
    right = ("", "x", "'; --") if number < 3 else (-1, 1.5, 10**30, float("nan"), float("inf"))
    value = rng.choice([value for value in WRONG if not any(value is x or value == x for x in right)])
    if number == 3 and isinstance(value, float):
        value = "NaN"
    texts = _texts(run_dir)
    line = json.loads(texts[number])
    line["values"]["loss"] = value
    texts[number] = json.dumps(line).encode()
    _write(run_dir, texts)
    return f"line {number + 1}: a value is {value!r}", (f"{JOURNAL}:{number + 1}:",), False


def _missing_key(rng: random.Random, run_dir: Path) -> Spoilt:
    texts = _texts(run_dir)
    number = rng.randrange(len(texts))
    line = json.loads(texts[number])
    key = rng.choice([key for key in line if key not in ("tracking_uri", "run_name")])
    del line[key]
    texts[number] = json.dumps(line).encode()
    _write(run_dir, texts)
    return f"line {number + 1} has no {key}", (JOURNAL,) if number == 0 else (f"{JOURNAL}:{number + 1}:",), False


def _other_kind(rng: random.Random, run_dir: Path) -> Spoilt:
    kind = rng.choice(["metric", "START", "image", "", "__class__", "heartbeat2"])
    texts = _texts(run_dir)
    number = rng.randrange(1, len(texts))
    texts[number] = json.dumps(json.loads(texts[number]) | {"kind": kind}).encode()
    _write(run_dir, texts)
    return f"line {number + 1} is of kind {kind!r}", (f"{JOURNAL}:{number + 1}:",), False


def _no_start(rng: random.Random, run_dir: Path) -> Spoilt:
    texts = _texts(run_dir)[1:]
    rng.shuffle(texts)
    _write(run_dir, texts)
    return "has no start", (JOURNAL,), False


def _harmless(rng: random.Random, run_dir: Path) -> Spoilt:
    texts = _texts(run_dir)
    change = rng.choice(["BOM", "CRLF", "spaces", "a field more", "no artifact file", "names", "order of keys"])
    if change == "BOM":
        texts[0] = b"\xef\xbb\xbf" + texts[0]
    elif change == "spaces":
        texts = [json.dumps(json.loads(text), indent=None, separators=(" , ", " : ")).encode() for text in texts]
    elif change == "a field more":
        texts[3] = texts[3][:-1] + b',"new":{"a":[1]}}'
    elif change == "no artifact file":
        (run_dir / "note.txt").unlink()
    elif change == "names":
        texts[1] = json.dumps({"kind": "params", "time": 2, "values": {"../a": "1", "a[1]": "2", "": "3"}}).encode()
    elif change == "order of keys":
        texts = [json.dumps(dict(reversed(json.loads(text).items()))).encode() for text in texts]
    _write(run_dir, texts)
    if change == "CRLF":
        (run_dir / JOURNAL).write_bytes((run_dir / JOURNAL).read_bytes().replace(b"\n", b"\r\n"))
    return change, (), True


def _artifact_path(rng: random.Random, run_dir: Path) -> Spoilt:
    paths = ["../first/note.txt", "/etc/hostname", "..", ".", "a/../../first", "n" * 4000, "note.txt/x", "%2e%2e/first"]
    path = rng.choice([*paths, "\\..\\first", "~/x", "file:///etc/hostname", "note.txt#x", "a\nb"])
    texts = _texts(run_dir)
    texts[4] = json.dumps({"kind": "artifact", "time": 5, "path": path}).encode()
    _write(run_dir, texts)
    return f"an artifact is {path[:40]!r}", (), True  # skipped with a warning; the rest is sent


def _no_file(rng: random.Random, run_dir: Path) -> Spoilt:
    journal = run_dir / JOURNAL
    journal.unlink()
    kind = rng.choice(["missing", "a folder", "a pipe", "a device", "a link out", "a loop", "empty", "a torn line"])
    match kind:
        case "a folder":
            journal.mkdir()
        case "a pipe":
            os.mkfifo(journal)
        case "a device":
            journal.symlink_to("/dev/zero")
        case "a link out":
            journal.symlink_to(run_dir.parent / "first" / JOURNAL)
        case "a loop":
            journal.symlink_to(journal)
        case "empty":
            journal.touch()
        case "a torn line":
            journal.write_bytes(_texts(run_dir)[0])
    return f"is {kind}", (run_dir.name,), False


def _position(rng: random.Random, run_dir: Path) -> Spoilt:
    uri = f"sqlite:///{run_dir.parent / 'mlflow.db'}"
    entry = {"journal": f"j-{run_dir.name}", "experiment_id": "1", "run_id": "0" * 32, "offset": 0, "artifacts": []}
    key = rng.choice(list(entry))
    content = rng.choice(
        [
            json.dumps({uri: entry | {key: rng.choice(WRONG)}}),
            json.dumps({uri: entry | {"artifacts": ["../first/note.txt"]}}),
            json.dumps({uri: entry | {"offset": rng.choice([1, 77, 10**9])}}),
            json.dumps({uri: rng.choice(WRONG)}),
            "[" * rng.choice([3, 5000]),
            "",
        ]
    )
    (run_dir / "mlflow.json").write_text(content)
    return f"mlflow.json is {content[:200]}", (), True


MUTATIONS: list[tuple[str, Callable[[random.Random, Path], Spoilt]]] = [
    ("line cut", _truncated),
    ("end torn", _torn_end),
    ("binary", _binary),
    ("no object", _no_object),
    ("nested too deep", _deep),
    ("huge integer", _huge_number),
    ("wrong value", _wrong_value),
    ("wrong entry", _wrong_entry),
    ("key missing", _missing_key),
    ("unknown kind", _other_kind),
    ("no start", _no_start),
    ("still a journal", _harmless),
    ("artifact path", _artifact_path),
    ("no file", _no_file),
    ("mlflow.json", _position),
]
