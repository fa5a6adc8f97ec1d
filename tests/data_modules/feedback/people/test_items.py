"""Items of the review page: visible text, identity, and questions."""

import pytest

from data_modules.feedback.people.items import field_of, items, questions, score
from data_modules.judgements.parsing import parse
from data_modules.markdown import word_for_word
from tests.data_modules.feedback.people.conftest import LEVEL, PAIR


def item(record):
    (only,) = items([parse(record)])
    return only


def test_what_somebody_said_is_neither_shown_nor_part_of_the_item():
    bare = {name: value for name, value in LEVEL.items() if name not in ("score", "source")}
    judged_line = LEVEL | {"score": 0.1, "critique": "a blog", "expected": "as per the usda .", "source": "model"}
    assert item(judged_line) == item(LEVEL) == item(bare) and item(judged_line).digest == item(bare).digest


def test_another_reply_is_another_item():
    assert item(LEVEL | {"responses": ["no ."]}).digest != item(LEVEL).digest


def test_the_same_line_twice_is_one_item():
    assert len(items([parse(LEVEL), parse(LEVEL)])) == 1


def test_a_reply_that_was_cut_off_says_so():
    cut = LEVEL | {"meta": {"finished": [False]}}
    assert item(cut).response == LEVEL["responses"][0] + " …"
    several = PAIR | {"meta": {"finished": [True, False, True]}}
    with pytest.raises(ValueError, match="meta: finished must be"):
        item(PAIR | {"meta": {"finished": [True]}})
    assert [part.split("\n\n")[1] for part in item(several).response.split("\n\n---\n\n")] == [
        "beef .",
        "kale . …",
        "both .",
    ]


def test_what_was_said_is_shown_word_for_word():
    forged = "![x](https://elsewhere.org/seen.png)\n\n---\n\n**B**\n\nA is bad"
    for text in (item(LEVEL | {"responses": [forged]}).response, item(LEVEL | {"prompt": forged}).request):
        assert text == word_for_word(forged) != forged
    chat = [{"role": "user", "content": forged}]
    assert word_for_word(forged) in item(LEVEL | {"prompt": chat}).request
    assert word_for_word(forged) in item(PAIR | {"responses": ["a", forged, "c"]}).response


def test_words_stay_as_they_are():
    assert item(LEVEL).response == LEVEL["responses"][0] and item(LEVEL).request == LEVEL["prompt"]


def test_an_episode_says_how_long_it_is():
    """A review may give forces for single steps, which can be checked only if the number of steps is known."""
    assert item(LEVEL | {"episode": "e.pt", "meta": {"steps": 3}}).record["episode"] == "e.pt"
    for meta in ({}, {"steps": "3"}, {"steps": 0}):
        with pytest.raises(ValueError, match="meta.steps: is missing; add the number of steps"):
            item(LEVEL | {"episode": "e.pt", "meta": meta})


def test_a_chat_names_who_speaks():
    chat = [{"role": "system", "content": "be short"}, {"role": "user", "content": "why ?\n\nand how ?"}]
    assert item(LEVEL | {"prompt": chat}).request == "**system**\n\nbe short\n\n**user**\n\nwhy ?\n\nand how ?"


def test_questions_are_those_that_some_item_needs():
    episode = LEVEL | {"episode": "e.pt", "meta": {"steps": 3}}
    names = {
        kind: [question.name for question in questions([item(record) for record in records], (0, 10))]
        for kind, records in {"one": [LEVEL], "some": [PAIR], "both": [LEVEL, PAIR], "episode": [episode]}.items()
    }
    assert names == {
        "one": ["score 0 to 10", "expected_response"],
        "some": ["ranking", "expected_response"],
        "both": ["score 0 to 10", "ranking", "expected_response"],
        "episode": ["score 0 to 10", "expected_action"],
    }


def test_an_answer_belongs_to_the_field_of_its_question():
    assert [field_of(question.name) for question in questions([item(LEVEL), item(PAIR)], (0, 1))] == [
        "score",
        "ranking",
        "expected",
    ]
    assert field_of(score((-1, 0.5)).name) == "score" and field_of("is_helpful") is None
