"""`python -m data_modules.feedback`: output, files and errors."""

import json
import subprocess
import sys

import pytest

from data_modules.feedback.__main__ import main
from data_modules.judgements.files import read, write
from data_modules.judgements.schema import Judgement, Message, Span, Step


@pytest.fixture
def path(tmp_path):
    """Four scored replies to one prompt, a single reply, a pair with one score missing, and an expected response."""
    path = tmp_path / "replies.jsonl"
    write(
        path,
        [
            Judgement("p", ("a", "b", "c", "d"), score=(0.3, 0.9, 0.25, 0.1), source="rule", id="x"),
            Judgement("q", ("a",), score=(0.5,), source="rule"),
            Judgement("r", ("a", "b"), score=(0.5, None), source="person 3"),
            Judgement("p", expected="e"),
        ],
    )
    return path


def test_ranks_by_score_with_ties(path, tmp_path, capsys):
    out = tmp_path / "ranked.jsonl"
    assert main(["rank", str(path), "--out", str(out), "--by", "score", "--ties", "0.05"]) == 0
    assert [judgement.ranking for judgement in read(out)] == ["B > A = C > D", None, None, None]
    output = capsys.readouterr().out
    assert "1 prompts ranked, 1 with ties, 0 of them with only ties" in output and "3 unchanged" in output
    main(["rank", str(out), "--out", str(out), "--by", "score"])
    assert read(out)[0].ranking == "B > A > C > D"


def test_nothing_to_rank_is_refused(tmp_path, capsys):
    path, out = tmp_path / "replies.jsonl", tmp_path / "ranked.jsonl"
    write(path, [Judgement("p", ("a", "b"))])
    assert main(["rank", str(path), "--out", str(out), "--by", "score"]) == 2
    assert "no line has two or more responses that all have a score" in capsys.readouterr().err and not out.exists()


def test_the_summary_counts(path, capsys):
    """Six scores with mean 2.55 / 6 = .425: bins .1, .2, .3 and .9 have one each, bin .5 two and the longest bar."""
    assert main(["check", str(path)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "4 judgements of 3 different prompts, 7 responses"
    rows = {line.split()[0]: line.split()[-1] for line in output if line}
    assert rows["responses"] == "3" and rows["score"] == "3" and rows["expected"] == "1" and "ranking" not in rows
    assert rows["rule"] == "2" and rows["person"] == "1"
    assert "6 scores on the scale 0 to 1, mean 0.425" in output
    bins = [line.split()[3:] for line in output if "–" in line]
    assert [int(bin_[0]) for bin_ in bins] == [0, 1, 1, 1, 0, 2, 0, 0, 0, 1]
    assert [len(bin_[1]) if len(bin_) > 1 else 0 for bin_ in bins] == [0, 20, 20, 20, 0, 40, 0, 0, 0, 20]


def test_the_summary_counts_pairs(tmp_path, capsys):
    """A > B = C has two strict pairs and a tie; A = B has only a tie."""
    path = tmp_path / "ranked.jsonl"
    write(path, [Judgement("p", ("a", "b", "c"), ranking="A > B = C"), Judgement("p", ("a", "b"), ranking="A = B")])
    main(["check", str(path)])
    assert "2 strict pairs and 2 ties; 1 rankings have only ties" in capsys.readouterr().out


def test_the_summary_of_preferences(tmp_path, capsys):
    """0, .7 and .5 have the confidences 1, .7 and .5, mean .733; A wins 1.5 of 3."""
    path = tmp_path / "judged.jsonl"
    write(path, [Judgement("p", ("a", "b"), preference=p) for p in (0.0, 0.7, 0.5)])
    main(["check", str(path)])
    output = capsys.readouterr().out
    assert "preferences: 3, mean confidence 0.733; A beats B in 0.5 of them" in output
    assert ["preference", "3"] in [line.split() for line in output.splitlines()]


def test_items_are_shown(tmp_path, capsys):
    path = tmp_path / "feedback.jsonl"
    example = Judgement(
        (Message("system", "be brief"), Message("user", "one\ntwo")),
        ("abcd", "ef"),
        score=(0.5, None),
        critique=(None, "no source"),
        spans=((Span(1, 3),), None),
        steps=(None, (Step(1, 1.0), Step(2, 0.0))),
        expected="e",
        ranking="B > A",
        preference=0.25,
        id="x",
    )
    write(path, [example, Judgement("second", expected="f")])
    main(["show", str(path), "--first", "1"])
    output = capsys.readouterr().out
    assert [line.split() for line in output.splitlines()] == [
        ["──", f"{path}:1", "(id", "x)"],
        ["system", "be", "brief"],
        ["user", "one"],
        ["two"],
        ["A", "abcd"],
        ["score", "0.5"],
        ["at", "'bc'"],
        ["B", "ef"],
        ["critique", "no", "source"],
        ["1", "'e'"],
        ["0", "'f'"],
        ["ranking", "B", ">", "A"],
        ["preference", "0.25"],
        ["expected", "e"],
    ]
    assert main(["show", str(path), "--id", "y"]) == 2
    assert "no judgement has the id 'y'" in capsys.readouterr().err


def test_bad_lines_are_skipped_aloud(path, capsys):
    with open(path, "a") as file:
        file.write("x\n")
    assert main(["check", str(path)]) == 2
    assert f"error: {path}:5: not JSON" in capsys.readouterr().err
    assert main(["check", str(path), "--on-bad", "skip"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("4 judgements") and f"skipped: {path}:5: not JSON" in output.err


def test_a_scale_is_declared_once(tmp_path, capsys):
    path = tmp_path / "feedback.jsonl"
    path.write_text(json.dumps({"prompt": "p", "responses": ["a"], "score": 7}) + "\n")
    assert main(["check", str(path)]) == 2
    assert "score: 7 is outside the scale 0 to 1" in capsys.readouterr().err
    assert main(["check", str(path), "--scale", "0", "10"]) == 0


def test_a_process_of_its_own_refuses_in_one_line(tmp_path):
    command = [sys.executable, "-m", "data_modules.feedback", "check", str(tmp_path / "none.jsonl")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr == f"error: path: there is no file {tmp_path / 'none.jsonl'}\n"


def test_a_process_of_its_own_ranks_without_importing_torch(path, tmp_path):
    out = tmp_path / "ranked.jsonl"
    arguments = ["rank", str(path), "--out", str(out), "--by", "score"]
    code = (
        "import sys; from data_modules.feedback.__main__ import main; "
        f"code = main({arguments!r}); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert read(out)[0].ranking == "B > A > C > D"


ESCAPES = "\x1b[2Jgone\rnew\x07 \u202eturned"


def test_no_text_of_a_file_reaches_the_terminal_as_an_escape_sequence(tmp_path, capsys):
    """ESC, BEL and bidirectional controls stay text, whether a value is shown, counted, refused or skipped."""
    good = {"prompt": ESCAPES, "responses": [ESCAPES], "score": 1, "critique": ESCAPES, "expected": ESCAPES}
    good |= {"source": ESCAPES, "id": ESCAPES, "episode": ESCAPES}
    chat = {"prompt": [{"role": "user", "content": ESCAPES}], "expected": "a"}
    bad = [{ESCAPES: 1}, good | {"score": ESCAPES}, good, chat | {"prompt": [{"role": ESCAPES, "content": "a"}]}]
    path = tmp_path / "feedback.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [good, chat, *bad]))
    assert main(["check", str(path)]) == 2
    assert main(["check", str(path), "--on-bad", "skip"]) == 0
    assert main(["show", str(path), "--on-bad", "skip"]) == 0
    assert main(["show", str(path), "--id", "\x1b[2J", "--on-bad", "skip"]) == 2
    for text in capsys.readouterr():
        assert r"\x1b[2Jgone" in text and not set(text) & set("\x1b\r\x07\u202e")


def test_a_fault_with_a_new_line_in_it_forges_no_line(tmp_path, capsys):
    path = tmp_path / "feedback.jsonl"
    path.write_text(json.dumps({"prompt": "a", "expected": "b", "x\nerror: all is lost": 1}) + "\n")
    assert main(["check", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_of_prompts_alone_is_no_fault(tmp_path, capsys):
    """If one line has feedback, the file is a feedback file and the lines without feedback are errors."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "id": "2", "facts": {"reference": "c"}}\n')
    assert main(["check", str(path)]) == 0
    assert "2 prompts for data_modules.text.PromptFile, and no feedback yet" in capsys.readouterr().out
    path.write_text(path.read_text() + '{"prompt": "d", "responses": ["e"]}\n')
    assert main(["check", str(path)]) == 2
    assert "prompts.jsonl:1: responses: are missing" in capsys.readouterr().err
