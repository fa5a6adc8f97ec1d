"""`convert` on the command line: file types, output, and `check` on the result."""

import gzip
import json

import pytest

from data_modules.feedback.__main__ import main
from data_modules.feedback.formats import FORMATS, recognised
from data_modules.judgements.files import read
from tests.data_modules.feedback.formats.examples import ARGILLA_FLAT, EXAMPLES, KAGGLE, TRL, ULTRAFEEDBACK

MESSAGES = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
FAR = TRL | {"score_chosen": 700, "score_rejected": -7}


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("name", "record"), EXAMPLES)
def test_check_names_the_format_and_takes_what_convert_writes(name, record, tmp_path, capsys):
    path, out = lines(tmp_path / "f.jsonl", record), str(tmp_path / "out.jsonl")
    assert recognised(record) == name
    assert main(["check", path]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: this is {FORMATS[name].title}; "
        f"convert it: python -m data_modules.feedback convert {path} --from {name} --out f.feedback.jsonl\n"
    )
    assert main(["convert", path, "--from", name, "--out", out]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.startswith("check it: python -m data_modules.feedback check ")
    assert main(command.split()[5:]) == 0


def test_ours_is_not_taken_for_another_format(tmp_path):
    ours = {"prompt": "a", "responses": ["b", "c"], "ranking": "A > B", "meta": {"messages": []}}
    assert recognised(ours) is recognised("x") is recognised({}) is recognised({"responses": {}, "fields": 5}) is None


def test_a_list_and_an_object_with_a_list_are_files_too(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    for number, content in enumerate(([TRL, TRL], {"version": "1", "rows": [TRL, TRL]})):
        for indent in (None, 1):
            path = tmp_path / f"{number}.json"
            path.write_text(json.dumps(content, indent=indent))
            assert main(["convert", str(path), "--from", "trl", "--out", str(out)]) == 0
            assert [judgement.id for judgement in read(out)] == ["1", "2"]
    path.write_text(json.dumps(MESSAGES, indent=1))  # a single record that has a list of objects
    assert main(["convert", str(path), "--from", "openai", "--out", str(out)]) == 0
    assert read(out)[0].expected == "b"


def test_rows_of_csv(tmp_path):
    path, out = tmp_path / "train.csv", tmp_path / "out.jsonl"
    quoted = ['"' + value.replace('"', '""') + '"' for value in (KAGGLE | {"response_a": '["yo\\n😀"]'}).values()]
    path.write_text(",".join(KAGGLE) + "\n" + ",".join(quoted) + "\n", encoding="utf-8")
    assert main(["convert", str(path), "--from", "lmsys", "--out", str(out)]) == 0
    assert read(out)[0].responses == ("yo\n😀", "hello")


def test_what_is_left_out_is_printed_with_its_line(tmp_path, capsys):
    silent = {"messages": MESSAGES["messages"][:1]}
    path, out = lines(tmp_path / "f.jsonl", MESSAGES, silent, silent | {"tools": [1]}), tmp_path / "out.jsonl"
    assert main(["convert", path, "--from", "openai", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 1 judgements from 3 records",
        "2 records without an answer left out: first in line 2",
        f"check it: python -m data_modules.feedback check {out}",
    ]


@pytest.mark.parametrize(
    ("name", "record", "scale"),
    [
        ("ultrafeedback", ULTRAFEEDBACK, "1 10"),
        ("argilla", ARGILLA_FLAT, "1 5"),
        ("trl", FAR, "-7 700"),
        ("trl", TRL, None),
    ],
)
def test_the_scale_of_scores_is_printed(name, record, scale, tmp_path, capsys):
    """The format's scale, else a common scale that includes the scores, else their range."""
    path = lines(tmp_path / "f.jsonl", record)
    main(["convert", path, "--from", name, "--out", str(tmp_path / "out.jsonl")])
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.endswith(f"--scale {scale}") if scale else "--scale" not in command


def test_a_bad_record_is_refused_or_skipped(tmp_path, capsys):
    path, out = tmp_path / "f.jsonl", tmp_path / "out.jsonl"
    path.write_text(f"{json.dumps(TRL)}\n\nx\n{json.dumps(TRL | {'chosen': 5})}\n" + '{"a": 1, "a": 2}\n')
    assert main(["convert", str(path), "--from", "trl", "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: 3 records are wrong",
        f"  {path}: line 3: not JSON: Expecting value at column 1; one object per line",
        f"  {path}: line 4: chosen: must be a text, is the number 5",
        f"  {path}: line 5: a: occurs twice; keep one of the two",
    ]
    assert not out.exists()
    assert main(["convert", str(path), "--from", "trl", "--out", str(out), "--on-bad", "skip"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: 1 judgements") and printed.err.startswith("skipped: 3 records are wrong")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"PAR1 and so on", "this is a Parquet file; save it as JSON lines"),
        (gzip.compress(b"{}", mtime=0), "the file is compressed with gzip; unpack it first"),
        ("[]".encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
        (b'[{"a": 1},\n x]', "not JSON: Expecting value at line 2"),
        (b"[" * 100_000, "not JSON: the brackets are nested too deeply"),
        (b"", "no record could be converted"),
        (b"[]", "no record could be converted"),
        (b"[5]", "record 1: the record: must be an object, is the number 5"),
        (b'"x"\n', "line 1: the record: must be an object, is a text"),
        (b'{"prompt": "a", "chosen": "\xff"}\n', "line 1: byte 28 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_one_error(content, fault, tmp_path, capsys):
    path = tmp_path / "f.json"
    path.write_bytes(content)
    assert main(["convert", str(path), "--from", "trl", "--out", str(tmp_path / "out.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: {fault}") and error.count("\n") == 1
    assert main(["check", str(path)]) == 2


def test_the_wrong_format_is_told_the_right_one(tmp_path, capsys):
    path = lines(tmp_path / "f.jsonl", TRL, TRL)
    assert main(["convert", path, "--from", "lmsys", "--out", str(tmp_path / "out.jsonl")]) == 2
    assert f"this is TRL's format; convert it: python -m data_modules.feedback convert {path} --from trl" in (
        capsys.readouterr().err
    )


def test_the_file_itself_is_not_written_over(tmp_path, capsys):
    path = lines(tmp_path / "f.jsonl", TRL)
    assert main(["convert", path, "--from", "trl", "--out", path]) == 2
    assert "is the input file; choose another one" in capsys.readouterr().err
    assert json.loads((tmp_path / "f.jsonl").read_text()) == TRL
    assert main(["convert", str(tmp_path / "none"), "--from", "trl", "--out", path]) == 2
    assert f"the file {tmp_path / 'none'} does not exist" in capsys.readouterr().err


def test_no_text_of_a_file_reaches_the_terminal_as_an_escape_sequence(tmp_path, capsys):
    escape = "\x1b[2J\nerror: x"
    parts = [{"type": escape}, {"type": "text", "text": "a"}]
    record = {"messages": [{"role": "user", "content": parts}, MESSAGES["messages"][1]], escape: 1}
    path, out = lines(tmp_path / "f.jsonl", record), str(tmp_path / "out.jsonl")
    assert main(["convert", path, "--from", "openai", "--out", out]) == 0
    lines(tmp_path / "f.jsonl", record, {"messages": [{"role": escape, "content": "a"}]})
    assert main(["convert", path, "--from", "openai", "--out", out]) == 2
    printed = capsys.readouterr()
    assert main(["convert", path, "--from", "openai", "--out", out, "--on-bad", "skip"]) == 0
    skipped = capsys.readouterr()
    assert "\x1b" not in skipped.out + skipped.err and len(skipped.err.splitlines()) == 1
    assert "\x1b" not in printed.out + printed.err and r"\x1b[2J\nerror: x parts left out" in printed.out
    assert len(printed.out.splitlines()) == 4 and len(printed.err.splitlines()) == 1


def places(value, path=()):
    """Paths of all values within a value."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    changed = value.copy()
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


@pytest.mark.parametrize(("name", "record"), EXAMPLES)
def test_any_value_of_a_wrong_type_is_a_fault_and_no_crash(name, record, convert):
    """Replaces each value in turn; the converted judgements can always be written."""
    wrong = (None, True, 5, -1, 1.5, 1e300, float("nan"), "", "x", "\ud83d", [], {}, [5], [[]], {"a": 5}, ["x"], [{}])
    for path in places(record):
        for new in wrong:
            changed = replaced(record, path, new)
            recognised(changed)
            try:
                judgements, account = convert(name, changed)
            except ValueError as error:
                assert str(error).startswith("f.json: record 1: ") and len(str(error)) < 500
            else:
                assert judgements or account
