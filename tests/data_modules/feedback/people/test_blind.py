"""Blind comparison: shuffled replies on the page, original order in the pulled file."""

import json

import mlflow
import pytest

from data_modules.feedback.__main__ import main
from data_modules.feedback.people.ask import ask
from data_modules.feedback.people.blind import restored, shuffled
from data_modules.feedback.people.pull import pull
from data_modules.feedback.people.store import opened
from data_modules.judgements.files import read
from data_modules.judgements.parsing import parse
from tests.data_modules.feedback.people.conftest import LEVEL, PAIR


def changed(number, start="from the start", policy="of the policy", **fields):
    meta = {"replies_of": ["start", "policy"], "finished": [False, True], "tokens": [[1], [2, 3]], "run": "mine"}
    return {"id": f"p{number}", "prompt": f"say {number}", "responses": [start, policy], "meta": meta} | fields


def test_the_order_goes_back_and_forth_with_all_that_is_of_a_response():
    for number in range(20):
        judgement = parse(changed(number, ranking="B > A"))
        hidden = shuffled(judgement)
        swapped = hidden.responses != judgement.responses
        assert restored(hidden) == judgement
        assert hidden.ranks == ((0, 1) if swapped else (1, 0))
        assert hidden.meta["finished"] == ([True, False] if swapped else [False, True])
        assert hidden.meta["tokens"] == ([[2, 3], [1]] if swapped else [[1], [2, 3]])
        assert "replies_of" not in hidden.meta and hidden.meta["run"] == "mine"


def test_three_responses_go_back_too():
    judgement = parse(PAIR | {"ranking": "C > A = B"})
    for number in range(10):
        line = parse(PAIR | {"ranking": "C > A = B", "prompt": str(number)})
        assert restored(shuffled(line)) == line
    assert restored(judgement) == judgement  # it was never shuffled


def test_either_reply_stands_first_about_as_often_and_always_the_same_way():
    """64 fair coins: fewer than 18 or more than 46 heads have probability .0004."""
    hidden = [shuffled(parse(changed(number))) for number in range(64)]
    assert hidden == [shuffled(parse(changed(number))) for number in range(64)]
    first = sum(item.responses[0] == "of the policy" for item in hidden)
    assert 18 <= first <= 46


def test_a_line_that_pretends_to_be_shuffled_is_refused(lines, place):
    line = changed(1)
    line["meta"]["shuffled"] = ["start", "policy"]
    with pytest.raises(ValueError, match="replies.jsonl:1: meta.shuffled: reserved for blind comparisons"):
        ask(lines(line), "q", **place)


def logged_traces(place):
    with opened(place["tracking_uri"], place["experiment"]) as store:
        return mlflow.MlflowClient().search_traces(locations=[store.id], include_spans=True)


def better(trace):
    """Letter of the policy's reply on the page."""
    page = trace.info.response_preview
    return "A" if page.index("of the policy") < page.index("from the start") else "B"


def test_people_compare_blindly_and_the_answers_are_of_start_and_policy(lines, place, person, tmp_path, capsys):
    """The policy wins five of eight pairs, loses two and ties one: 5.5 of 8 = .6875. Wilson interval with z = 1.96:
    centre (.6875 + .2401)/1.4802 = .6267, half width 1.3241 · √(.026855 + .015006) = .2709, so .3557 to .8976.
    """
    ask(lines(*map(changed, range(8))), "q", **place)
    traces = {trace.info.request_preview: trace for trace in logged_traces(place)}
    assert {better(trace) for trace in traces.values()} == {"A", "B"}
    for trace in traces.values():
        assert "replies_of" not in json.dumps(trace.to_dict())
    for number in range(8):
        policy = better(traces[f"say {number}"])
        start = "B" if policy == "A" else "A"
        ranking = f"{policy} > {start}" if number < 5 else f"{start} > {policy}" if number < 7 else "A = B"
        person.reviews(f"p{number}", "ana", ranking=ranking)
    out = tmp_path / "out.jsonl"
    flags = ["--tracking-uri", place["tracking_uri"], "--experiment", place["experiment"]]
    assert main(["pull", "--queue", "q", "--out", str(out), *flags]) == 0
    words = "policy against start: win rate 0.688 (a tie counts half), 95 % interval 0.356 to 0.898, over 8 pairs"
    assert words in capsys.readouterr().out
    by_prompt = {judgement.prompt: judgement for judgement in read(out)}
    for number in range(8):
        judgement = by_prompt[f"say {number}"]
        assert judgement.responses == ("from the start", "of the policy")
        assert judgement.ranks == ((1, 0) if number < 5 else (0, 1) if number < 7 else (0, 0))
        assert judgement.meta == changed(number)["meta"]
    assert main(["compare", str(out)]) == 0
    assert words in capsys.readouterr().out


def test_files_that_name_nobody_are_blind_if_asked(lines, place, person, tmp_path):
    pairs = [PAIR | {"id": f"p{number}", "prompt": str(number), "responses": ["one", "two"]} for number in range(8)]
    flags = ["--tracking-uri", place["tracking_uri"], "--experiment", place["experiment"]]
    assert main(["ask", str(lines(*pairs)), "--queue", "q", "--blind", *flags]) == 0
    firsts = {trace.info.response_preview.startswith("**A**\n\none") for trace in logged_traces(place)}
    assert firsts == {True, False}
    person.reviews("p0", ranking="A > B")
    (judgement,) = pull("q", tmp_path / "out.jsonl", **place).judgements
    assert judgement.responses == ("one", "two") and judgement.meta == {}


def test_a_lone_reply_is_asked_about_as_ever(lines, place, person, tmp_path):
    record = LEVEL | {"meta": LEVEL["meta"] | {"replies_of": ["policy"]}}
    ask(lines(record), "q", **place)
    person.reviews("level-1", score=0.5)
    (judgement,) = pull("q", tmp_path / "out.jsonl", **place).judgements
    assert judgement.meta == record["meta"] and judgement.score == (0.5,)
