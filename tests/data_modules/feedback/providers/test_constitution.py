"""Critique and revision by principles, round after round, on a real server."""

import re
from pathlib import Path

import pytest

from data_modules.feedback.__main__ import main
from data_modules.feedback.providers.constitution import Constitution, read_principles
from data_modules.judgements.files import read, write
from data_modules.judgements.schema import Judgement
from data_modules.text import ByteTokenizer, DemonstrationsDataModule

CONF = Path(__file__).parents[4] / "conf" / "feedback"
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
    """Its critique of v0 is c0, and the revision of that v1, and so on."""

    def said(body):
        prompt = prompt_of(body)
        version = int(re.search(r"Assistant: v(\d)", prompt)[1])
        return server.chat(f"v{version + 1}" if "Revision Request" in prompt else f"c{version}")

    return said


def test_each_round_revises_the_last_revision(server, endpoint, principles, prompt_of):
    server.answer = assistant(server, prompt_of)
    (line,), account = Constitution(endpoint(concurrency=1), str(principles), rounds=2).complete(LINES[:1], int)
    assert line.expected == "v2" and line.responses == ("v0", "other") and line.source == "judge"
    assert [(each["critique"], each["revision"]) for each in line.meta["revisions"]] == [("c0", "v1"), ("c1", "v2")]
    assert account.counters["calls"] == 4
    critique, revision, second, _ = map(prompt_of, server.requests)
    asked = {p.name: p for p in read_principles(principles)}[line.meta["revisions"][0]["principle"]]
    head = f"Human: q 0\n\nAssistant: v0\n\nCritique Request: {asked.critique}\n\nCritique:"
    assert critique == head
    assert revision.startswith(f"{head} c0\n\nRevision Request: {asked.revision}\n\n")
    assert second.startswith("Human: q 0\n\nAssistant: v1\n\nCritique Request: ")


def test_principles_are_drawn_by_the_seed_and_take_turns(endpoint, principles):
    def drawn(seed, line=LINES[0]):
        return [p.name for p in Constitution(endpoint(), str(principles), rounds=4, seed=seed).drawn(line)]

    assert drawn(1) == drawn(1) and set(drawn(1)[:3]) == {"kind", "true", "brief"}
    assert len({tuple(drawn(seed)) for seed in range(8)}) > 1
    assert len({tuple(drawn(0, Judgement(f"q {i}", ("v0",)))) for i in range(8)}) > 1


def test_half_a_chain_is_no_revision_and_a_rerun_goes_on(server, endpoint, principles, prompt_of):
    """Three prompts of two rounds are twelve answers; seven are paid, then the other five."""
    server.answer = assistant(server, prompt_of)
    done, account = Constitution(endpoint(max_calls=7), str(principles), rounds=2).complete(LINES, int)
    assert account.stopped and not account.left_out and len(server.requests) == 7
    assert all(line.expected in (None, "v2") for line in done)
    assert [line for line in done if line.expected is None] == [
        old for old, new in zip(LINES, done, strict=True) if new.expected is None
    ]
    done, account = Constitution(endpoint(max_calls=7), str(principles), rounds=2).complete(LINES, int)
    assert [line.expected for line in done] == ["v2"] * 3 and len(server.requests) == 12 and not account.stopped


def test_an_empty_revision_is_left_out(server, endpoint, principles, prompt_of):
    server.answer = lambda body: server.chat("" if "q 1" in prompt_of(body) else "better")
    done, account = Constitution(endpoint(), str(principles)).complete(LINES, int)
    assert [line.expected for line in done] == ["better", None, "better"]
    assert account.left_out == ["judgement 2: the answer is empty"]


def test_from_the_command_line_to_rows_to_imitate(server, tmp_path, prompt_of, capsys):
    """By the principles of the yaml; what it writes is what supervised fine-tuning reads."""
    server.answer = assistant(server, prompt_of)
    write(tmp_path / "in.jsonl", LINES)
    out = tmp_path / "revisions.jsonl"
    arguments = ["constitution", str(tmp_path / "in.jsonl"), "--principles", str(CONF / "principles.yaml")]
    flags = ["--set", f"endpoint.url={server.url}", "--set", f"endpoint.cache={tmp_path / 'cache'}"]
    assert main([*arguments, "--rounds", "4", "--seed", "3", *flags, "--out", str(out)]) == 0
    assert [line.expected for line in read(out)] == ["v4"] * 3 and len(server.requests) == 24
    assert "more is known of 3 of 3 prompts (24 calls" in capsys.readouterr().out
    data = DemonstrationsDataModule(tokenizer=ByteTokenizer(), path=str(out))
    data.setup("fit")
    assert [each.reply for each in data.demonstrations["train"]] == ["v4"] * 3
    assert main([*arguments, "--rounds", "0", *flags, "--out", str(out)]) == 2
    assert "rounds: Expected a whole number from 1 to 2147483647. Got value: 0" in capsys.readouterr().err


def test_an_expected_response_is_not_revised(endpoint, principles):
    line = Judgement("q", ("a",), expected="e")
    assert Constitution(endpoint(), str(principles)).complete([line], int)[0] == [line]


def test_what_a_rule_has_scored_is_revised(server, endpoint, principles):
    """The score stays the rule's, and the line says whose the revision is."""
    server.says(server.chat("better"))
    line = Judgement("q", ("a",), score=(0.5,), source="rule", meta={"tokens": [[1]]})
    (done,), _ = Constitution(endpoint(), str(principles)).complete([line], int)
    assert (done.source, done.score, done.expected) == ("rule", (0.5,), "better")
    assert done.meta["said_by"] == {"expected": "judge"} and done.meta["tokens"] == [[1]]
    assert len(done.meta["revisions"]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "has no list `principles`"),
        ("principles: [1]", "number 1: needs name, critique, revision"),
        ("principles: [{name: a, critique: b}]", "number 1: needs name, critique, revision"),
        ("principles: [{name: a, critique: b, revision: 3}]", "its fields are texts"),
        (f"{THREE}  - {{name: kind, critique: a, revision: b}}".replace("name: true", "name: 't'"), "two of the name"),
        ("principles: [", "is no yaml"),
    ],
)
def test_principles_that_are_none(tmp_path, text, message):
    path = tmp_path / "principles.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_principles(path)


def test_the_principles_of_the_yaml_are_whole():
    found = read_principles(CONF / "principles.yaml")
    assert len(found) == 3 and all(principle.preference for principle in found)
