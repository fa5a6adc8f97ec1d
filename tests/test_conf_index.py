"""`conf/README.md` is what its generator writes, and its commands and links are good."""

import json
import re
import shlex

import pytest

from benchmarks.conf_headers import headers
from benchmarks.conf_index import TIMES, index, paper, row
from data_modules.feedback.__main__ import _parser as feedback_parser
from lightning_nlf.cli.command_line import main
from tests.documents import ROOT

CONF = ROOT / "conf"
PAGE = (CONF / "README.md").read_text()
HEADERS = headers()
COMMANDS = sorted({line for header in HEADERS for line in header.commands if line.startswith("python -m ")})
STAGES = [line for line in COMMANDS if line.startswith("python -m lightning_nlf ")]


def test_the_page_is_what_the_generator_writes():
    """If not: python benchmarks/conf_index.py"""
    times = json.loads(TIMES.read_text())["rows"]
    assert index(HEADERS, {name: cell["minutes"] for name, cell in times.items()}) == PAGE


def test_every_yaml_and_every_variant_has_one_row():
    rows = re.findall(r"^\| \[[^\]]+\]\(([\w/]+\.yaml)\) \| [^|]* \| `([^`]+)` \|.*\|$", PAGE.replace("\\|", ""), re.M)
    assert sorted(rows) == sorted((f"{header.yaml}.yaml", header.command) for header in HEADERS)
    assert {yaml for yaml, _ in rows} == {path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}


def test_every_row_has_five_cells():
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \[.+\.yaml\) \|", line)]
    assert len(rows) == len(HEADERS) and {len(re.split(r"(?<!\\)\|", line)) - 2 for line in rows} == {5}


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", PAGE)
    titles = {f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^## (.+)$", PAGE, re.M)}
    assert [link for link in links if link not in titles and not (CONF / link).is_file()] == []


def test_times_are_those_of_yamls():
    assert json.loads(TIMES.read_text())["rows"].keys() <= {header.name for header in HEADERS}


def test_a_row_shows_bars_and_minutes():
    header = next(header for header in HEADERS if header.name == "pendulum/joint")
    assert "KL(expert \\|\\| policy)" in row(header, 12.34) and row(header, 12.34).endswith("| 12 |")
    assert row(header, 0.26).endswith("| 0.3 |") and row(header, None).endswith("| – |")


def test_a_folder_without_a_sentence_is_refused():
    with pytest.raises(KeyError, match="no sentence for strange"):
        index([*HEADERS, HEADERS[0].__class__("strange/a", "strange/a", "A", (), (), (), "", "")], {})


def test_papers_have_short_names():
    assert paper("https://arxiv.org/abs/2305.18290") == "[arXiv 2305.18290](https://arxiv.org/abs/2305.18290)"
    assert paper("https://doi.org/10.1/a") == "[doi](https://doi.org/10.1/a)"


@pytest.mark.slow
@pytest.mark.parametrize("command", STAGES)
def test_the_commands_of_headers_parse(command, monkeypatch, capsys):
    """Class paths, names and types of all settings and flags; nothing is built."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ending:
        main([*shlex.split(command)[3:], "--print_config"])
    assert ending.value.code == 0, capsys.readouterr().err


def test_the_other_commands_of_headers_parse():
    remaining = [line for line in COMMANDS if line not in STAGES and ".tracking ui" not in line]
    assert len(remaining) > 5
    for line in remaining:
        assert line.startswith("python -m data_modules.feedback "), line
        feedback_parser().parse_args(shlex.split(line)[3:])
