import json

import pytest

from lightning_nlf.tracking.records import RecordError, parse

METRICS = {"kind": "metrics", "time": 1, "step": 2, "values": {"loss": 0.5}}
START = {"kind": "start", "time": 1, "journal": "a1", "experiment": "e", "run_name": None, "pid": 7}


@pytest.mark.parametrize(
    "record",
    [
        METRICS | {"values": {"a": 1, "b": "nan", "c": "-inf", "": 2.5}, "step": -(2**63)},
        START | {"new": [1]},
        {"kind": "tags", "time": 0, "values": {}},
        {"kind": "end", "time": 253402300799999, "status": "KILLED"},
        {"kind": "artifact", "time": 1, "path": "../a"},  # the target is checked when it is sent
    ],
)
def test_record_comes_back_as_it_was(record):
    assert parse(json.dumps(record).encode()) == record


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"\0\0", "not valid JSON"),
        (b'{"kind":"end"', "not valid JSON"),
        (b'{"kind":"end","time":' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"kind":"tags","time":1,"values":{"a":"\\ud800"}}', "half of a surrogate pair"),
        (b"[1]", "not a JSON object"),
        (b'{"kind":["end"],"time":1}', r"kind is \['end'\], not one of start, params, tags, metrics, artifact, end"),
        (b"{}", "kind is None, not one of"),
    ],
)
def test_line_that_is_none_says_why(line, fault):
    with pytest.raises(RecordError, match=fault):
        parse(line)


@pytest.mark.parametrize(
    ("base", "name", "value"),
    [
        (METRICS, "time", -1),
        (METRICS, "time", float("nan")),
        (METRICS, "time", 10**15),
        (METRICS, "time", True),
        (METRICS, "step", 1.5),
        (METRICS, "step", 2**63),
        (METRICS, "values", []),
        (METRICS, "values", {"a": "0.5"}),
        (METRICS, "values", {"a": None}),
        (METRICS, "values", {"a": True}),
        (METRICS, "values", {"a": 10**400}),
        ({"kind": "params", "time": 1, "values": {}}, "values", {"a": 1}),
        ({"kind": "artifact", "time": 1, "path": "a"}, "path", "a\0b"),
        ({"kind": "artifact", "time": 1, "path": "a"}, "path", ""),
        ({"kind": "end", "time": 1, "status": "FAILED"}, "status", "RUNNING"),
        ({"kind": "end", "time": 1, "status": "FAILED"}, "status", []),
        (START, "journal", "a' or '1"),
        (START, "experiment", 3),
        (START, "pid", 10**30),
        (START, "process_started", "x"),
    ],
)
def test_field_of_another_type_or_size_is_named(base, name, value):
    assert parse(json.dumps(base).encode()) == base
    with pytest.raises(RecordError, match=f"{base['kind']}: {name} is "):
        parse(json.dumps(base | {name: value}).encode())


def test_missing_field_is_named():
    with pytest.raises(RecordError, match="metrics: step is missing"):
        parse(b'{"kind":"metrics","time":1,"values":{}}')
