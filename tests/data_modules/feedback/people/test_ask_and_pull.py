"""`ask` and `pull` on a database without a server, with reviews written like the review page writes them."""

import json
import os
import random

import mlflow
import pytest

from data_modules.feedback.__main__ import main
from data_modules.feedback.people.ask import ask
from data_modules.feedback.people.pull import pull
from data_modules.feedback.people.store import opened
from data_modules.judgements.files import read
from tests.data_modules.feedback.people.conftest import LEVEL, PAIR

LONG = LEVEL | {"id": "long", "prompt": "why " * 1500 + "?", "responses": ["because " * 1000 + "."]}


def traces_of(place):
    with opened(place["tracking_uri"], place["experiment"]) as store:
        return mlflow.MlflowClient().search_traces(locations=[store.id])


def test_every_line_is_a_trace_that_shows_all_of_it(lines, place):
    path = lines(LEVEL, LONG)
    put = ask(path, "q", **place)
    assert (put.new, put.existing) == (2, 0)
    assert {trace.info.tags["feedback_file"] for trace in traces_of(place)} == {str(path)}
    previews = {trace.info.request_preview: trace.info.response_preview for trace in traces_of(place)}
    assert previews == {record["prompt"]: record["responses"][0] for record in (LEVEL, LONG)}


def test_candidates_stand_under_their_letters_and_lines_stay_lines(lines, place):
    ask(lines(PAIR), "q", **place)
    (trace,) = traces_of(place)
    assert trace.info.request_preview == "which has more iron ,  \nbeef or kale ?"
    assert trace.info.response_preview == "**A**\n\nbeef .\n\n---\n\n**B**\n\nkale .\n\n---\n\n**C**\n\nboth ."


def test_asking_again_adds_what_is_new_and_leaves_what_was_said(lines, place, person):
    ask(lines(LEVEL), "q", **place)
    person.reviews("level-1", score=1.0)
    put = ask(lines(LEVEL, LONG), "q", **place)
    assert (put.new, put.existing) == (1, 1)
    assert person.sees() == {"level-1": "complete", "long": "pending"}
    assert len(pull("q", lines(name="out.jsonl"), **place).judgements) == 1


def test_two_queues_have_items_of_their_own(lines, place):
    assert ask(lines(LEVEL), "q", **place).new == ask(lines(LEVEL), "other", **place).new == 1


def test_runs_of_one_seed_do_not_overwrite_each_other_s_items(lines, place, person):
    """MLflow draws trace ids with Python's generator, which every run seeds."""
    for queue, record in (("q", LEVEL), ("other", PAIR)):
        random.seed(0)
        ask(lines(record), queue, **place)
        assert random.random() == random.Random(0).random()
    assert person.sees() == {"level-1": "pending"} and len(traces_of(place)) == 2


def test_a_review_comes_back_as_the_line_that_was_asked_about_with_what_was_said(lines, place, person, tmp_path):
    ask(lines(LEVEL), "q", **place)
    person.reviews("level-1", "ana", "the source is a blog", score=0.5, expected_response="as per the usda .")
    pull("q", tmp_path / "out.jsonl", **place)
    (judgement,) = read(tmp_path / "out.jsonl")
    assert (judgement.prompt, list(judgement.responses)) == (LEVEL["prompt"], LEVEL["responses"])
    assert judgement.score == (0.5,) and judgement.critique == ("the source is a blog",)
    assert (judgement.expected, judgement.source, judgement.meta) == ("as per the usda .", "ana", LEVEL["meta"])
    assert judgement.id is not None and judgement.id.startswith("level-1:") and judgement.id.endswith(":ana")


def test_a_ranking_comes_back_with_its_words(lines, place, person, tmp_path):
    ask(lines(PAIR), "q", **place)
    person.reviews("pair-1", comment="C says nothing", ranking="B > A = C")
    pull("q", tmp_path / "out.jsonl", **place)
    (judgement,) = read(tmp_path / "out.jsonl")
    assert judgement.ranks == (1, 0, 1) and judgement.critique is None
    assert judgement.meta == {"comment": "C says nothing"}


def test_each_person_has_a_line_and_the_last_answer_counts(lines, place, person, tmp_path):
    ask(lines(LEVEL), "q", **place)
    person.reviews("level-1", "ana", score=0.2)
    person.reviews("level-1", "ben", score=0.8)
    person.reviews("level-1", "ana", score=0.4)
    pull("q", tmp_path / "out.jsonl", **place)
    assert {j.source: j.score for j in read(tmp_path / "out.jsonl")} == {"ana": (0.4,), "ben": (0.8,)}


@pytest.mark.parametrize(
    "record, answers, why",
    [
        (LEVEL, {"score": 99}, "score: 99 is outside the scale 0 to 1"),
        (PAIR, {"ranking": "A > D > B > C"}, "ranking: 'A > D > B > C' names 'D', but the responses are A to C"),
        (PAIR, {"ranking": "A > B"}, "leaves out C"),
        (PAIR, {"expected_response": " "}, "expected: the text is empty"),
        (LEVEL, {}, "default completed it without an answer"),
    ],
)
def test_what_cannot_be_used_is_reopened_with_the_reason(lines, place, person, tmp_path, record, answers, why):
    ask(lines(record), "q", **place)
    person.reviews(record["id"], **answers)
    reviews = pull("q", tmp_path / "out.jsonl", **place)
    assert reviews.judgements == [] and not (tmp_path / "out.jsonl").exists()
    assert why in reviews.reopened and record["id"] in reviews.reopened
    assert person.sees() == {record["id"]: "pending"}


def test_the_good_review_of_an_item_survives_the_bad_one(lines, place, person, tmp_path):
    ask(lines(LEVEL), "q", **place)
    person.reviews("level-1", "ana", score=0.2)
    person.reviews("level-1", "ben", score=-1)
    for _ in range(2):  # the item is reopened; Ana's review still counts
        reviews = pull("q", tmp_path / "out.jsonl", **place)
        assert [j.source for j in reviews.judgements] == ["ana"] and len(reviews.faults) == 1
    person.reviews("level-1", "ben", score=0.1)
    assert [j.source for j in pull("q", tmp_path / "out.jsonl", **place).judgements] == ["ana", "ben"]


def test_nothing_is_left_out_in_silence(lines, place, person, tmp_path, capsys):
    records = [LEVEL | {"id": name} for name in ("said", "declined", "open", "off")]
    ask(lines(*records), "q", **place)
    person.reviews("said", "ana", score=1)
    person.declines("declined", "ben")
    person.reviews("off", "ana", score=7)
    flags = ["--tracking-uri", place["tracking_uri"], "--experiment", place["experiment"]]
    assert main(["pull", "--queue", "q", "--out", str(tmp_path / "out.jsonl"), *flags]) == 0
    output = capsys.readouterr()
    assert "reviews: 1 by ana" in output.out
    assert "items without a review: 1" in output.out and "items declined: 1, by ben" in output.out
    assert "off:" in output.err and "7 is outside the scale 0 to 1" in output.err


def test_the_scale_of_the_question_is_that_of_the_reviews(lines, place, person, tmp_path):
    ask(lines(LEVEL), "q", scale=(1, 5), **place)
    person.reviews("level-1", **{"score 1 to 5": 4})
    assert pull("q", tmp_path / "out.jsonl", **place).judgements[0].score == (4.0,)


def test_a_queue_keeps_its_questions(lines, place):
    ask(lines(LEVEL), "q", **place)
    with pytest.raises(
        ValueError, match="'q' asks for .*score 0 to 1.* but these items need ranking, expected_response"
    ):
        ask(lines(PAIR), "q", **place)


def test_a_file_that_nobody_could_judge_is_refused(lines, place):
    with pytest.raises(ValueError, match="responses: the line has none to review"):
        ask(lines({"prompt": "a", "expected": "b"}), "q", **place)
    with pytest.raises(ValueError, match="12002 characters, and the review page shows only 10000"):
        ask(lines(LEVEL | {"prompt": "a" * 12002}), "q", **place)
    with pytest.raises(ValueError, match="scale: got 1 to 0"):
        ask(lines(LEVEL), "q", scale=(1, 0), **place)


def test_pulling_makes_nothing(lines, place, tmp_path):
    missing = tmp_path / "none.db"
    with pytest.raises(ValueError, match="the database .* does not exist"):
        pull("q", "out.jsonl", f"sqlite:///{missing}")
    assert not missing.exists()
    ask(lines(LEVEL), "q", **place)
    with pytest.raises(ValueError, match="has no queue 'p'; its queues: q"):
        pull("p", "out.jsonl", **place)
    with pytest.raises(ValueError, match="has no experiment 'nowhere'"):
        pull("q", "out.jsonl", place["tracking_uri"], "nowhere")


def test_a_dead_server_is_one_sentence(lines, capsys):
    flags = ["--queue", "q", "--tracking-uri", "http://someone:se@cret@127.0.0.1:9"]
    assert main(["ask", str(lines(LEVEL)), *flags]) == 2
    output = capsys.readouterr().err
    assert "tracking_uri: http://127.0.0.1:9" in output and "cret" not in output and "someone" not in output


@pytest.mark.parametrize("uri", [None, "sqlite:///set.db"])
@pytest.mark.parametrize("variable", [None, "sqlite:///variable.db"])
def test_mlflow_goes_on_where_it_was(lines, place, monkeypatch, uri, variable):
    """Restores MLflow's state, whether its URI, the environment variable, both or neither were set."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it too; monkeypatch restores the original value
    mlflow.set_tracking_uri(uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if variable is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    was_set, before = mlflow.is_tracking_uri_set(), mlflow.get_tracking_uri()
    ask(lines(LEVEL), "q", **place)
    assert (mlflow.is_tracking_uri_set(), mlflow.get_tracking_uri()) == (was_set, before)
    assert os.environ.get("MLFLOW_TRACKING_URI") == variable
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mlflow.is_tracking_uri_set() == (uri is not None)
    mlflow.set_tracking_uri(None)


def test_the_record_is_whole(lines, place, tmp_path, person):
    """The record keeps all fields except feedback at full length, which tags would truncate."""
    record = LONG | {"meta": LEVEL["meta"] | {"tokens": [list(range(3000))]}}
    ask(lines(record), "q", **place)
    person.reviews("long", score=1)
    pull("q", tmp_path / "out.jsonl", **place)
    line = json.loads((tmp_path / "out.jsonl").read_text())
    assert line["meta"] == record["meta"] and line["prompt"] == record["prompt"] and line["score"] == 1
