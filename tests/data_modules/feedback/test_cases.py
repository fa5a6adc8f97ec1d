"""Odd feedback files are read exactly or refused with line and field; `check` and training agree on both."""

import json
import time
import warnings

import pytest

from data_modules.feedback import FeedbackDataModule
from data_modules.feedback.__main__ import main
from data_modules.judgements.files import read
from data_modules.text.tokenizer import WordTokenizer

PAIR = '{"prompt": "is kale high ?", "responses": ["yes .", "no ."], "ranking": "B > A"}'
GOOD = '{"prompt": "d ?", "responses": ["x"], "score": 0.5}'


def scored(value, suffix=""):
    return '{"prompt": "a ?", "responses": ["x"], "score": ' + value + suffix + "}"


def chat(message):
    return json.dumps({"prompt": [message], "responses": ["x"], "score": 1})


def nested(depth):
    return scored("1", ', "meta": {"a": ' + "[" * depth + "]" * depth + "}")


def meta(**fields):
    return scored("1", ', "meta": ' + json.dumps(fields))


BAD = {  # an invalid line and the message after FILE:LINE
    "400 digits": (scored("9" * 400), "score: the number is not finite, or too large"),
    "5,000 digits": (scored("9" * 5000), "score: inf is not finite"),
    "5,000 digits below 0": (scored("-" + "9" * 5000), "score: inf is not finite"),
    "5,000 digits in meta": (scored("1", ', "meta": {"n": ' + "9" * 5000 + "}"), "meta: cannot be written as JSON"),
    "5,000 digits as prompt": ('{"prompt": ' + "9" * 5000 + ', "expected": "e"}', "prompt: must be a text"),
    "NaN": (scored("NaN"), "score: nan is not finite"),
    "Infinity": (scored("Infinity"), "score: inf is not finite"),
    "1e999": (scored("1e999"), "score: inf is not finite"),
    "4/5": (scored('"4/5"'), "score: must be a number, is a text; write 0.8, without quotes"),
    "4": (scored("4"), "score: 4 is outside the scale 0 to 1; correct it, or set another scale"),
    "0.8 in quotes": (scored('"0.8"'), "score: must be a number, is a text; write 0.8, without quotes"),
    "true": (scored("true"), "score: must be a number, is true or false; write 1 or 0"),
    "twice": (scored("1", ', "score": 0'), "score: occurs twice"),
    "empty critique": (scored("0.5", ', "critique": ""'), "critique: the text is empty"),
    "empty response": ('{"prompt": "a ?", "responses": [""], "score": 0.5}', "responses: the text is empty"),
    "surrogate": (r'{"prompt": "a \ud83d ?", "responses": ["x"]}', "prompt: the text has half of a surrogate pair"),
    "surrogate in meta": (scored("1", r', "meta": {"a": "\ud83d"}'), "meta: has half of a surrogate pair"),
    "cut": (PAIR[:-10], "not JSON: "),
    "deep": (nested(500), "meta: its brackets are nested more than"),
    "deeper": (nested(100_000), "not JSON: the brackets are nested too deeply"),
    "deep role": (chat({"role": json.loads("[" * 900 + "]" * 900), "content": "a"}), "prompt: its brackets are nested"),
    "said_by": (meta(said_by=5), "meta: said_by must be an object"),
    "said_by a text": (meta(said_by={"score": [1]}), "meta: said_by must be an object"),
    "finished a text": (meta(finished="no"), "meta: finished must be true or false"),
    "finished null": (meta(finished=None), "meta: finished must be true or false"),
    "finished of two": (meta(finished=[True, False]), "meta: finished must be true or false"),
    "finished of none": (
        '{"prompt": "a ?", "expected": "e", "meta": {"finished": []}}',
        "meta: finished must be true or",
    ),
    "openai": (
        '{"messages": [{"role": "user", "content": "a ?"}]}',
        "messages: this line is in OpenAI's format; write ",
    ),
    "trl": (
        '{"prompt": "a ?", "chosen": "x", "rejected": "y"}',
        "chosen: this line is in TRL's format of pairs; write ",
    ),
    "sharegpt": ('{"conversations": [{"from": "human", "value": "a"}]}', "conversations: this line is in ShareGPT's"),
    "name": (chat({"role": "user", "content": "a ?", "name": "bob"}), "prompt: message 1 must be {"),
    "parts": (chat({"role": "user", "content": [{"type": "text"}]}), "prompt: message 1: content: is a list of parts"),
    "null": (chat({"role": "assistant", "content": None}), "prompt: message 1: content: must be a text, is null"),
    "human": (chat({"role": "human", "content": "a ?"}), "prompt: message 1: role 'human' is none of "),
    "indices": ('{"prompt": "a ?", "responses": ["x", "y"], "ranking": [1, 0]}', "ranking: must be a text, is a list"),
    "small letters": ('{"prompt": "a", "responses": ["x", "y"], "ranking": "b > a"}', "ranking: 'b > a' names 'b'"),
    "full width": ('{"prompt": "a", "responses": ["x", "y"], "ranking": "B ＞ A"}', "ranking: 'B ＞ A' names "),
    "UTF-16 units": (
        '{"prompt": "a", "responses": ["😀 bad"], "score": 0, "spans": [{"start": 3, "end": 6}]}',
        "spans: 3 to 6 is not a range within the 5 characters of the response; count characters: an emoji is one",
    ),
}


def fitted(path, **knobs):
    """Rows of a file as `fit` reads them."""
    data = FeedbackDataModule(str(path), WordTokenizer().fit(["a ? x d is kale high yes no . bad 😀"]), **knobs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.setup("fit")
    return data.rows


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_and_skipped_alike_by_check_and_fit(case, tmp_path, capsys):
    line, fault = BAD[case]
    path = tmp_path / "f.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    assert main(["check", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {path}:2: {fault}") and message.count("\n") == 1 and len(message) < 600
    with pytest.raises(ValueError) as error:
        fitted(path)
    assert str(error.value).startswith(f"{path}:2: {fault}")
    assert main(["check", "--on-bad", "skip", str(path)]) == 0
    assert "1 judgements of 1 different prompts" in capsys.readouterr().out
    assert len(fitted(path, on_bad="skip")) == 1


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (json.dumps([json.loads(PAIR)] * 2, indent=1).encode(), "this is a JSON array; give one object per line"),
        (f"[\n{PAIR},\n{PAIR}\n]\n".encode(), "this is a JSON array; give one object per line"),
        (json.dumps(json.loads(PAIR), indent=1).encode(), "this is an object over several lines"),
        (f"{PAIR}\n{PAIR}\n".encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_one_fault(content, fault, tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    for on_bad in ("raise", "skip"):
        with pytest.raises(ValueError) as error:
            read(path, on_bad=on_bad)
        assert str(error.value).startswith(f"{path}:1: {fault}") and "\n" not in str(error.value)


def test_marks_ends_and_separators_of_lines_leave_texts_exact(tmp_path):
    path = tmp_path / "f.jsonl"
    line = '{"prompt": "naïve 😀 漢\u2028\u2029\x85字 ?", "expected": "e"}'
    path.write_bytes(b"\xef\xbb\xbf" + f"{PAIR}\r\n\r\n{line}\r\n".encode())
    assert [judgement.prompt for judgement in read(path)] == ["is kale high ?", "naïve 😀 漢\u2028\u2029\x85字 ?"]


def test_a_large_number_in_meta_hurts_nobody(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(scored("0.5", ', "meta": {"n": ' + "9" * 400 + "}"))
    assert read(path)[0].meta == {"n": int("9" * 400)}
    assert len(fitted(path)) == 1


def test_check_doubts_spans_behind_an_emoji_and_lines_that_repeat(tmp_path, capsys):
    path = tmp_path / "f.jsonl"
    line = {"prompt": "a ?", "responses": ["😀 bad"], "score": 0, "spans": [{"start": 2, "end": 5}], "source": "ana"}
    plain = line | {"responses": ["a bad 😀"]}
    path.write_text("\n".join(map(json.dumps, [line, plain, line | {"score": 1}])))
    assert main(["check", str(path)]) == 0
    doubts = capsys.readouterr().out.split("check these lines:\n")[1].splitlines()
    assert [doubt.split(": ")[:2] for doubt in doubts] == [
        [f"{path}:1", "spans"], [f"{path}:3", "spans"], [f"{path}:3", "responses"]
    ]  # fmt: skip
    assert "'bad'" in doubts[0] and f"judged the same ones in {path}:1" in doubts[2]


def test_a_ranking_of_5000_takes_no_time_and_its_faults_one_short_line(tmp_path, capsys):
    from data_modules.judgements.ranking import letter

    path = tmp_path / "f.jsonl"
    names = [letter(i) for i in range(5000)]
    line = {"prompt": "a ?", "responses": ["x"] * 5000, "ranking": " > ".join(names)}
    path.write_text(json.dumps(line))
    begin = time.process_time()
    assert main(["check", str(path)]) == 0
    assert time.process_time() - begin < 1
    assert "12497500 strict pairs and 0 ties" in capsys.readouterr().out
    path.write_text(json.dumps(line | {"ranking": " > ".join(names[:2000])}))
    assert main(["check", str(path)]) == 2
    assert "leaves out BXY, BXZ, BYA, BYB, BYC and 2995 more" in (fault := capsys.readouterr().err) and len(fault) < 400
