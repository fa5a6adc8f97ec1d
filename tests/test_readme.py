"""What the README names is there, and its commands run. The pages of `docs/` have tests of their own."""

import json
import pkgutil
import re
import shlex
import shutil

import pytest
import yaml

from data_modules.feedback import read
from data_modules.feedback.__main__ import _parser as feedback_parser
from lightning_nlf.cli.command_line import main
from tests.documents import ROOT, check_command, commands, commands_of, page_blocks, run_page

README = (ROOT / "README.md").read_text()
BLOCKS = page_blocks(README)
RESULTS = ROOT / "benchmarks" / "results"


def test_the_readme_is_short():
    assert len(README) <= 8000


@pytest.mark.slow
def test_the_readme_runs(tmp_path):
    """Every block, in order, in an empty folder with `conf/`; fits are cut down to seconds."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    run_page(README, tmp_path)
    config = yaml.safe_load((tmp_path / "outputs/frugal/config.yaml").read_text())
    assert config["model"]["class_path"] == "frugal.FrugalPolicy"


def test_the_loss_is_as_describe_prints_it(capsys):
    main(["describe", "--config", str(ROOT / "conf/injection.yaml")])
    output = capsys.readouterr().out
    section = output[output.index("Loss:") :].split("\n\n")[0]
    (loss,) = [block.text for block in BLOCKS if block.language == "text"]
    assert loss.split() == section.split()


def test_the_line_of_feedback_is_one(tmp_path):
    (line,) = [block.text for block in BLOCKS if block.language == "jsonl"]
    (tmp_path / "feedback.jsonl").write_text(line)
    assert [judgement.expected for judgement in read(tmp_path / "feedback.jsonl")] == [json.loads(line)["expected"]]


def test_what_is_not_run_here_is_run_by_a_page():
    (left_out,) = [block for block in BLOCKS if "<!-- not run:" in block.before]
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").glob("from_*.md"))
    assert [line for line in commands(left_out.text) if line not in pages] == []


def test_the_yaml_is_that_of_the_main_job():
    (text,) = [block.text for block in BLOCKS if block.language == "yaml"]
    assert yaml.safe_load(text) == yaml.safe_load((ROOT / "conf/injection.yaml").read_text())


def test_the_figures_of_the_main_job_are_measured():
    table = (RESULTS / "pendulum.md").read_text().split("| arm |")[1].split("\n\n")[0].splitlines()
    (row,) = [line for line in table if line.startswith("| injection |")]
    labels = row.strip("| ").split(" | ")[table[0].strip("| ").split(" | ").index("labels") + 1]
    (steps,) = re.findall(r"[\d,]+ \[[\d,]+, [\d,]+\]", row)
    assert f"after {steps} environment steps, with {labels} labels" in " ".join(README.split())


@pytest.mark.parametrize(
    ("title", "arm"),
    [
        ("Behaviour cloning", "bc"),
        ("DAgger", "dagger"),
        ("Joint objective", "joint"),
        ("Trajectory injection", "injection"),
    ],
)
def test_speed_ups_are_the_lower_bounds_of_the_study(title, arm):
    """They are bold in the table of each setting, first for the mode. Below 1 nothing is claimed."""
    settings = (RESULTS / "speedup.md").read_text().split("**Setting: ")[1:]
    rows = [re.findall(rf"^\| {arm} \|(.*)\|$", setting, re.M)[0] for setting in settings]
    bounds = [re.findall(r"\*\*([\d.]+)\*\*", row)[0] for row in rows]
    claims = [f"{bound}×" if float(bound) >= 1 else "no speed-up shown" for bound in bounds]
    claims = ["not solved" if " 50/50 " in row else claim for row, claim in zip(rows, claims, strict=True)]
    (cells,) = re.findall(rf"^\| \[{title}\]\([^)]+\) \| (.*) \|$", README, re.M)
    assert cells.split(" | ") == claims


def test_the_readme_installs_as_the_first_page_does():
    """tests/test_start_pages.py runs the command of the page."""
    install_and_fit, install_and_test = [b.text for b in page_blocks(README) if b.text.startswith("pip ")][:2]
    page = (ROOT / "docs/start/control.md").read_text()
    assert install_and_fit in page and install_and_test == "pip install tox && tox\n"


def test_all_code_that_the_readme_names_is_there():
    for name in sorted(set(re.findall(r"\b((?:lightning_nlf|data_modules)(?:\.\w+)+)", README))):
        pkgutil.resolve_name(name)


def test_every_yaml_the_readme_names_is_there():
    names = set(re.findall(r"conf/[\w/]+\.yaml", README))
    assert names and [name for name in sorted(names) if not (ROOT / name).is_file()] == []


RUNS = [command.split(None, 3)[3] for command in commands_of(README, "lightning_nlf") if "conf/" in command]


@pytest.mark.parametrize("command", RUNS)
def test_the_commands_of_the_readme_build(command, tmp_path, monkeypatch):
    """With a word misspelt, or a knob that is gone, they would not. One that needs another run first is only read."""
    monkeypatch.chdir(ROOT)
    for block in BLOCKS:
        if block.language == "python" and block.file:
            (tmp_path / block.file).write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path)
    check_command(command)


def test_the_commands_on_feedback_files_are_there():
    for command in commands_of(README, "data_modules.feedback"):
        feedback_parser().parse_args(shlex.split(command)[3:])


def test_links_and_pictures_are_there():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []
