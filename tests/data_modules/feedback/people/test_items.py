"""What of a line a person sees, and what makes it another item."""

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from data_modules.feedback.parsing import parse
from data_modules.feedback.people.items import items
from data_modules.feedback.people.questions import field_of, questions, score
from tests.data_modules.feedback.people.conftest import LEVEL, PAIR


def item(record):
    (found,) = items([parse(record)])
    return found


def test_what_somebody_said_is_neither_shown_nor_part_of_the_item():
    bare = {name: value for name, value in LEVEL.items() if name not in ("score", "source")}
    said = LEVEL | {"score": 0.1, "critique": "a blog", "expected": "as per the usda .", "source": "model"}
    assert item(said) == item(LEVEL) == item(bare) and item(said).digest == item(bare).digest


def test_another_reply_is_another_item():
    assert item(LEVEL | {"responses": ["no ."]}).digest != item(LEVEL).digest


def test_the_same_line_twice_is_one_item():
    assert len(items([parse(LEVEL), parse(LEVEL)])) == 1


def test_a_reply_that_was_cut_off_says_so():
    cut = LEVEL | {"meta": {"finished": [False]}}
    assert item(cut).response == LEVEL["responses"][0] + " …"
    some = PAIR | {"meta": {"finished": [True, False, True]}}
    with pytest.raises(ValueError, match="meta: finished must be"):
        item(PAIR | {"meta": {"finished": [True]}})
    assert [part.split("\n\n")[1] for part in item(some).response.split("\n\n---\n\n")] == [
        "beef .",
        "kale . …",
        "both .",
    ]


SAID = [
    "![so good](https://elsewhere.org/seen.png)",
    "[the usda](https://elsewhere.org) says so",
    "<img src=x onerror=alert(1)> &lt;b&gt; &amp; &#42;",
    "a\n\n---\n\n**B**\n\nA is bad",
    "title\n===\n# one\n> two\n- three\n+ four\n* five\n1. six\n2) seven",
    "    indented\n\tcode\n```\nx_1 * y_2 * z\n```",
    "`x` ~~y~~ a_b_c \\* back\\slash 3 * 4 * 5 <https://elsewhere.org>",
    "| a | b |\n| --- | --- |\n| 1 | 2 |",
    "plain words , 1.5 g - or so ! it is > 2 & < 3 ?",
]


@pytest.mark.parametrize("text", SAID)
def test_a_page_shows_what_was_said_and_nothing_that_it_means(text):
    """No picture is fetched, no letter is forged: there are paragraphs and line breaks, and all else is text."""
    for shown in (item(LEVEL | {"responses": [text]}).response, item(LEVEL | {"prompt": text}).request):
        html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(shown)
        assert set(re.findall(r"</?(\w+)", html)) <= {"p", "br"}
        page = re.sub(r"<br />\n", "\n", html).removesuffix("</p>\n").replace("</p>\n<p>", "\n\n").removeprefix("<p>")
        assert unescape(page).replace("\xa0", " ") == text.replace("\t", "    ")


def test_words_stay_as_they_are():
    assert item(LEVEL).response == LEVEL["responses"][0] and item(LEVEL).request == LEVEL["prompt"]


def test_an_episode_says_how_long_it_is():
    """A review may mark its steps; without their number none could be checked."""
    assert item(LEVEL | {"episode": "e.pt", "meta": {"steps": 3}}).record["episode"] == "e.pt"
    for meta in ({}, {"steps": "3"}, {"steps": 0}):
        with pytest.raises(ValueError, match="meta: steps, the number of steps of the episode, is missing"):
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
