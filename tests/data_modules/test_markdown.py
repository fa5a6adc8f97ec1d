"""Texts on a page of Markdown, as another program renders it."""

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from data_modules.markdown import escaped, word_for_word

render = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render
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
    html = render(word_for_word(text))
    assert set(re.findall(r"</?(\w+)", html)) <= {"p", "br"}
    page = re.sub(r"<br />\n", "\n", html).removesuffix("</p>\n").replace("</p>\n<p>", "\n\n").removeprefix("<p>")
    assert unescape(page).replace("\xa0", " ") == text.replace("\t", "    ")


@pytest.mark.parametrize("text", SAID)
def test_a_cell_of_a_table_holds_a_line_and_nothing_that_it_means(text):
    line = text.replace("\n", " ").strip()
    html = render(f"| a | b |\n| --- | --- |\n| {escaped(line)} | x |\n")
    assert set(re.findall(r"</?(\w+)", html)) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert unescape(re.findall(r"<td>(.*?)</td>", html)[0]) == line


def test_plain_words_are_left_alone():
    plain = "kale has 1.5 mg - or so ! that is > 1 & not = 2 ?"
    assert word_for_word(plain) == escaped(plain) == plain
