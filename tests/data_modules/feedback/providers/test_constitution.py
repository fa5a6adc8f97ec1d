"""Critique and revision by principles, in several rounds, with a scripted server."""

import re
from pathlib import Path

import pytest

from data_modules.feedback.__main__ import main
from data_modules.feedback.providers.constitution import Constitution, read_principles
from data_modules.judgements.files import read, write
from data_modules.judgements.schema import Judgement
from data_modules.text import ByteTokenizer, DemonstrationsDataModule

CONF = Path(__file__).parents[4] / "conf" / "providers"
THREE = """
principles:
  - {name: kind, critique: find the unkind, revision: be kind}
  - {name: true, critique: find the untrue, revision: be true}
  - {name: brief, critique: find the long, revision: be brief}
"""
LINES = [Judgement(f"q {i}", ("v0", "other")) for i in range(3)]


@pytest.fixture
def principles(tmp_path):
    path = tmp_path / "principles.yaml"
    path.write_text(THREE.replace("name: true", "name: 'true'"))
    return path


def assistant(server, prompt_of):
    """Answers: the critique of v0 is c0, its revision is v1, and so on."""

    def answer(body):
        prompt = prompt_of(body)
        version = int(re.search(r"Assistant: v(\d)", prompt)[1])
        return server.chat(f"v{version + 1}" if "Revision Request" in prompt else f"c{version}")

    return answer


def test_each_round_revises_the_last_revision(server, endpoint, principles, prompt_of):
    server.answer = assistant(server, prompt_of)
    (line,), account = Constitution(endpoint(concurrency=1), str(principles), rounds=2).complete(LINES[:1], int)
    assert line.expected == "v2" and line.responses == ("v0", "other") and line.source == "judge"
    assert [(entry["critique"], entry["revision"]) for entry in line.meta["revisions"]] == [("c0", "v1"), ("c1", "v2")]
    assert account.counters["calls"] == 4
    critique, revision, second, _ = map(prompt_of, server.requests)
    chosen = {p.name: p for p in read_principles(principles)}[line.meta["revisions"][0]["principle"]]
    head = f"Human: q 0\n\nAssistant: v0\n\nCritique Request: {chosen.critique}\n\nCritique:"
    assert critique == head
    assert revision.startswith(f"{head} c0\n\nRevision Request: {chosen.revision}\n\n")
    assert second.startswith("Human: q 0\n\nAssistant: v1\n\nCritique Request: ")


def test_principles_are_drawn_by_the_seed_and_take_turns(endpoint, principles):
    def names(seed, line=LINES[0]):
        return [p.name for p in Constitution(endpoint(), str(principles), rounds=4, seed=seed).principles_for(line)]

    assert names(1) == names(1) and set(names(1)[:3]) == {"kind", "true", "brief"}
    assert len({tuple(names(seed)) for seed in range(8)}) > 1
    assert len({tuple(names(0, Judgement(f"q {i}", ("v0",)))) for i in range(8)}) > 1


def test_half_a_chain_is_no_revision_and_a_rerun_goes_on(server, endpoint, principles, prompt_of):
    """Three prompts with two rounds need twelve answers; the budget allows seven, and the rerun gets the other five."""
    server.answer = assistant(server, prompt_of)
    completed, account = Constitution(endpoint(max_calls=7), str(principles), rounds=2).complete(LINES, int)
    assert account.stopped and not account.left_out and len(server.requests) == 7
    assert all(line.expected in (None, "v2") for line in completed)
    assert [line for line in completed if line.expected is None] == [
        old for old, new in zip(LINES, completed, strict=True) if new.expected is None
    ]
    completed, account = Constitution(endpoint(max_calls=7), str(principles), rounds=2).complete(LINES, int)
    assert [line.expected for line in completed] == ["v2"] * 3 and len(server.requests) == 12 and not account.stopped


def test_an_empty_revision_is_left_out(server, endpoint, principles, prompt_of):
    server.answer = lambda body: server.chat("" if "q 1" in prompt_of(body) else "better")
    completed, account = Constitution(endpoint(), str(principles)).complete(LINES, int)
    assert [line.expected for line in completed] == ["better", None, "better"]
    assert account.left_out == ["judgement 2: the answer is empty"]


def test_from_the_command_line_to_rows_to_imitate(server, tmp_path, prompt_of, capsys):
    """With the principles of the yaml; supervised fine-tuning reads the output."""
    server.answer = assistant(server, prompt_of)
    write(tmp_path / "in.jsonl", LINES)
    out = tmp_path / "revisions.jsonl"
    arguments = ["constitution", str(tmp_path / "in.jsonl"), "--principles", str(CONF / "principles.yaml")]
    flags = ["--set", f"endpoint.url={server.url}", "--set", f"endpoint.cache={tmp_path / 'cache'}"]
    assert main([*arguments, "--rounds", "4", "--seed", "3", *flags, "--out", str(out)]) == 0
    assert [line.expected for line in read(out)] == ["v4"] * 3 and len(server.requests) == 24
    assert "feedback added to 3 of 3 prompts (24 calls" in capsys.readouterr().out
    data = DemonstrationsDataModule(tokenizer=ByteTokenizer(), path=str(out))
    data.setup("fit")
    assert [entry.reply for entry in data.demonstrations["train"]] == ["v4"] * 3
    assert main([*arguments, "--rounds", "0", *flags, "--out", str(out)]) == 2
    assert "rounds: Expected a whole number from 1 to 2147483647. Got value: 0" in capsys.readouterr().err


def test_an_expected_response_is_not_revised(endpoint, principles):
    line = Judgement("q", ("a",), expected="e")
    assert Constitution(endpoint(), str(principles)).complete([line], int)[0] == [line]


def test_what_a_rule_has_scored_is_revised(server, endpoint, principles):
    """The rule stays the source of the score, and `said_by` names the source of the revision."""
    server.says(server.chat("better"))
    line = Judgement("q", ("a",), score=(0.5,), source="rule", meta={"tokens": [[1]]})
    (completed,), _ = Constitution(endpoint(), str(principles)).complete([line], int)
    assert (completed.source, completed.score, completed.expected) == ("rule", (0.5,), "better")
    assert completed.meta["said_by"] == {"expected": "judge"} and completed.meta["tokens"] == [[1]]
    assert len(completed.meta["revisions"]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "must have a non-empty list `principles`"),
        ("principles: [1]", "number 1: must have the fields name, critique, revision"),
        ("principles: [{name: a, critique: b}]", "number 1: must have the fields name, critique, revision"),
        ("principles: [{name: a, critique: b, revision: 3}]", "all fields must be non-empty texts"),
        (
            f"{THREE}  - {{name: kind, critique: a, revision: b}}".replace("name: true", "name: 't'"),
            "two principles named",
        ),
        ("principles: [", "is not valid yaml"),
    ],
)
def test_principles_that_are_none(tmp_path, text, message):
    path = tmp_path / "principles.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_principles(path)


def test_the_principles_of_the_yaml_are_whole():
    all_principles = read_principles(CONF / "principles.yaml")
    assert len(all_principles) == 3 and all(principle.preference for principle in all_principles)
