"""Pages on families of methods and on feedback: their commands, yamls, figures, links, metrics and length."""

import ast
import re
import shlex

import pytest
import yaml

from data_modules.feedback.__main__ import _parser as feedback_parser
from tests.documents import ROOT, check_command, check_names, commands_of, page_blocks

DOCS = ROOT / "docs"
METHODS = [page for page in sorted((DOCS / "methods").glob("*.md")) if page.stem != "index"]
FEEDBACK = [page for page in sorted((DOCS / "feedback").glob("*.md")) if page.stem != "index"]
PAGES = METHODS + FEEDBACK


def name_of(page):
    return page.stem


def section(page, title):
    """The text under a heading of the second level; empty without it."""
    match = re.search(rf"^## {title}.*?\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)
    return match[1] if match else ""


# ---- commands

FITS = sorted({command for page in PAGES for command in commands_of(page.read_text(), "lightning_nlf")})
RUNS = [command.split(None, 3)[3] for command in FITS if "conf/" in command]


@pytest.mark.parametrize("command", RUNS)
def test_a_command_builds(command, monkeypatch):
    """With a word misspelt, or a knob that is gone, it would not. One that needs another run first is only read."""
    monkeypatch.chdir(ROOT)
    check_command(command)


def test_commands_on_feedback_files_are_there():
    every = [command for page in PAGES for command in commands_of(page.read_text(), "data_modules.feedback")]
    assert len(every) > 12
    for command in every:
        feedback_parser().parse_args(shlex.split(command)[3:])


# ---- yamls


def test_every_yaml_is_on_a_page():
    """Pages on your own prompts give those of `conf/chat/`."""
    text = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    names = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "conf").rglob("*.yaml"))]
    missing = [name for name in names if name not in text and not name.startswith("conf/chat/")]
    assert len(names) > 90 and missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_yamls_and_the_code_that_a_page_names_are_there(page):
    check_names(page.read_text())


def is_part(part, whole):
    """Whether all that a yaml says is said in another, too."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and is_part(value, whole[key]) for key, value in part.items())
    return part == whole


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_an_excerpt_is_of_its_yaml(page):
    """The one that the sentence before links to."""
    for block in page_blocks(page.read_text()):
        if block.language == "yaml":
            (source,) = re.findall(r"\]\(([^)]+\.yaml)\)", block.before)
            assert is_part(yaml.safe_load(block.text), yaml.safe_load((page.parent / source).read_text())), source


def test_a_part_of_a_yaml_is_told_from_another():
    whole = {"a": {"b": 1, "c": [1, 2]}}
    assert is_part({"a": {"b": 1}}, whole) and is_part({"a": {"c": [1, 2]}}, whole)
    assert not any(is_part(part, whole) for part in ({"a": {"b": 2}}, {"d": 1}, {"a": {"c": [1]}}))


# ---- figures


def table_rows(text):
    """(header, row) of all rows of all tables."""
    for part in re.findall(r"(?:^\|.*\n)+", f"{text}\n", re.M):
        header, _, *rows = part.splitlines()
        yield from ((header, row) for row in rows)


MEASURED = {pair for path in (ROOT / "benchmarks/results").glob("*.md") for pair in table_rows(path.read_text())}


@pytest.mark.parametrize("page", METHODS, ids=name_of)
def test_a_row_with_figures_is_a_row_of_a_results_file(page):
    """To the letter, and under the same header."""
    rows = [pair for pair in table_rows(page.read_text()) if re.search(r"\d \[\S+, \S+\]", pair[1])]
    assert rows or page.stem == "reward_models"
    assert [row for row in rows if row not in MEASURED] == []


def test_the_table_of_methods_says_what_they_ask_for():
    """Scores, R, or critiques alone: as the yaml has it."""
    text = (DOCS / "methods/critiques.md").read_text()
    rows = re.findall(r"\| (c|c, R) \| (?:`\w+` in )?\[`(conf/answers/\w+\.yaml)`\]", text)
    assert len(rows) == 12
    assert [name for asks, name in rows if ("scored: false" in (ROOT / name).read_text()) != (asks == "c")] == []


# ---- the form of a page


@pytest.mark.parametrize("page", METHODS, ids=name_of)
def test_a_page_of_methods_has_its_sections(page):
    assert len(re.findall(r"https?://", section(page, "Papers"))) >= 1
    assert all(section(page, title) for title in ("Run", "What the yaml says", "Metrics", "Results"))
    details = re.split(r"^\d+\. ", section(page, "Implementation details"), flags=re.M)[1:]
    assert len(details) >= 8 and [text for text in details if "{line}`" not in text] == []


def line_links(page):
    """(path, quoted text) of each link to a line of code."""
    return re.findall(r'\{line\}`([\w./-]+) "(.+?)"`', page.read_text(), re.S)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_link_to_a_line_has_one_line(page):
    """The build of the site checks it too."""
    lines = {path: (ROOT / path).read_text().splitlines() for path, _ in line_links(page)}
    assert [(path, text) for path, text in line_links(page) if sum(text in line for line in lines[path]) != 1] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_short(page):
    assert len("\n".join(line for line in page.read_text().splitlines() if not line.startswith("|"))) <= 9000


SOURCE = "\n".join(
    ast.unparse(ast.parse(path.read_text()))
    for folder in ("lightning_nlf", "data_modules")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_metrics_of_a_page_are_in_the_code(page):
    names = set(re.findall(r"`((?:train|val)/[\w/]+)`", page.read_text()))
    last = {name: name.rpartition("/")[2].removesuffix("_sampled") for name in names}
    assert [name for name, word in sorted(last.items()) if not re.search(rf"\b{word}\b", SOURCE)] == []
