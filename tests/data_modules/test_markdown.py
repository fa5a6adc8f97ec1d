"""Escaped text on a page of Markdown, rendered by another program."""

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from data_modules.markdown import escaped, word_for_word
from data_modules.terminal import on_one_line, printable
from data_modules.text.transcript import write_tables

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
    """No image is loaded and no character changes: there are paragraphs and line breaks, and all else is text."""
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


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_a_carriage_return_ends_a_line_and_what_stands_after_it_means_nothing(end, tmp_path):
    """Markdown reads it as a new line, so a heading could begin there, or a table row end."""
    text = f"so{end}# big{end}| a | b |{end}<img src=x>"
    html = render(word_for_word(text))
    assert set(re.findall(r"</?(\w+)", html)) == {"p", "br"} and html.count("<br") == 3
    assert word_for_word(text) == word_for_word(text.replace(end, "\n"))
    for path in write_tables([{"reply": text, "score": "1"}], tmp_path):
        output = path.read_bytes()
        assert b"\r" not in output and output.count(b"img") == 1
        if path.suffix == ".md":
            assert len(output.splitlines()) == 3  # head, rule and one row
            assert render(output.decode()).count("<tr>") == 2


CONTROLS = [*map(chr, [*range(9), *range(11, 13), *range(14, 32), *range(127, 160), 0x2028, 0x202E, 0x2066, 0xD800])]


def test_control_characters_are_shown_as_text(tmp_path):
    """ESC [ 2 J would clear the screen, and U+202E reverse the line; tab and new line are not changed."""
    assert printable("\x1b[2J\ta\nb\r\nc\rd\x9b\u202e") == "\\x1b[2J\ta\nb\nc\nd\\x9b\\u202e"
    assert on_one_line("a\nerror: b\t\x07") == r"a\nerror: b\t\x07"
    for control in CONTROLS:
        spelled = ascii(control)[1:-1]
        assert printable(f"a{control}b") == f"a{spelled}b"
        assert unescape(render(word_for_word(f"a{control}b"))) == f"<p>a{spelled}b</p>\n"
        for path in write_tables([{"reply": control}], tmp_path):
            assert control.encode(errors="surrogatepass") not in path.read_bytes()
    plain = "naïve 日本 🙂 \u200f\u200d é"  # with marks that Arabic, Hebrew and emoji need
    assert printable(plain) == on_one_line(plain) == plain
