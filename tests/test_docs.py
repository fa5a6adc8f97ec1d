"""Every page of `docs/` is done as it says, in an empty folder beside a copy of `conf/`."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from benchmarks.own_prompts_arms import ARMS
from data_modules.feedback import read
from lightning_nlf.cli.command_line import main
from tests.documents import ROOT, Block, check_names, commands, fast, page_blocks, run_page, with_includes
from tests.journey import Journey, in_folder

PAGES = sorted((ROOT / "docs").glob("**/*.md"))
JOURNEYS = [ROOT / "docs" / f"from_{teacher}.md" for teacher in ("people", "a_file", "a_judge", "critiques")]
FAMILIES = ("methods", "feedback")  # folders whose pages tests/test_method_runs.py runs
ELSEWHERE = [
    ROOT / "docs" / name
    for name in ("start/control.md", "start/language.md", "start/compare.md", "add_an_objective.md")
]
TO_RUN = [
    page
    for page in PAGES
    if page not in JOURNEYS + ELSEWHERE
    and page.parent.name not in FAMILIES
    and any(block.is_run for block in page_blocks(page.read_text()))
]


def name_of(page):
    return page.relative_to(ROOT / "docs").with_suffix("").as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN, ids=name_of)
def test_a_page_runs(page, tmp_path):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    run_page(page.read_text(), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_of_a_page_can_be_read(page):
    for block in page_blocks(page.read_text()):
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "jsonl":
            for line in block.text.splitlines():
                json.loads(line)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_yamls_and_the_code_that_a_page_names_are_there(page):
    check_names(page.read_text())


def anchors(page):
    """The anchors of the headings of a page, as GitHub and MyST name them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    """To a file, and to a heading in it. The build of the site checks them again."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text())
    assert [link for link, _ in links if not (page.parent / link).exists()] == []
    targets = [(page.parent / link if link else page, anchor) for link, anchor in links if anchor]
    assert [anchor for target, anchor in targets if anchor not in anchors(target.read_text())] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_directive_has_no_fence_of_backticks(page):
    """Backticks are the fence of code; a directive that has them hides the blocks after it from the tests."""
    assert re.findall(r"^```\{.*$", page.read_text(), re.M) == []


def test_anchors_of_headings():
    page = "# A b\n\n```bash\n# no heading\n```\n\n## What `x` is: 2\n"
    assert anchors(page) == {"a-b", "what-x-is-2"}


@pytest.mark.parametrize("name", ["own_prompts", "own_model"])
def test_the_figures_of_the_page_are_those_of_the_results_files(name):
    page = with_includes(ROOT / "docs" / "measured.md")
    parts = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text().strip().split("\n\n")
    assert parts and [part for part in parts if part not in page] == []


def figures_of_arms():
    """Names a source, start → policy, and the number of seeds, of each arm of the table."""
    rows = (ROOT / "benchmarks" / "results" / "own_prompts.md").read_text().split("\n\n")[0].splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in rows]
    return {arm: (source, seeds) for arm, source, *_, seeds in cells}


@pytest.mark.parametrize("page", JOURNEYS, ids=name_of)
def test_a_journey_has_figures_of_the_results_file(page):
    section = page.read_text().split("## Measured")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    arms = figures_of_arms()
    assert rows and [row for row in rows if arms.get(row[0]) != tuple(row[1:])] == []


def test_the_figures_of_which_yaml_for_which_feedback_are_measured():
    page = (ROOT / "docs/feedback/index.md").read_text().split("## Which yaml")[1]
    figures = set(re.findall(r"\d\.\d+ → \d\.\d+", page))
    assert figures and figures <= {source.split(" [")[0] for source, _ in figures_of_arms().values()}


@pytest.mark.parametrize("path", sorted((ROOT / "conf/chat").glob("*.yaml")), ids=lambda path: path.stem)
def test_figures_in_the_header_of_a_yaml_are_those_of_the_results_file(path):
    header = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    quotes = re.findall(r"ask for one: (\S+ → .+?) \(start → policy, arm `(.+?)`, (\d) seeds?", header)
    assert ("Reached:" in header) == bool(quotes) and 2 * len(quotes) == header.count("→")
    arms = figures_of_arms()
    assert [quote for quote in quotes if arms.get(quote[1]) != (quote[0], quote[2])] == []


@pytest.mark.parametrize("name", ["ilf", "sdpo"])
def test_the_first_figure_in_a_header_is_that_of_the_yaml_as_it_stands(name):
    """The critic and the reviser of its arm are those of the yaml."""
    header = " ".join(line.lstrip("# ") for line in (ROOT / f"conf/chat/{name}.yaml").read_text().splitlines())
    arm = ARMS[re.findall(r"arm `(.+?)`", header)[0]]
    assert arm.yaml == name and not {"--data.critic", "--data.reviser", "--config"} & set(arm.flags)


# ---- your own prompts, model and teacher


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """A folder of a team: pages are done in it one after the other, and leave what they leave."""
    yield from in_folder(Journey, tmp_path_factory.mktemp("team"))


LEFT = {
    "from_people": ["my/reviews.jsonl", "my/compared.jsonl", "outputs/chat/round-seed0/exhibits/changed.html"],
    "from_a_file": ["my/converted.jsonl", "outputs/chat/sft-seed0/adapter", "outputs/chat/ppo-seed0/huggingface"],
    "from_a_judge": ["my/judged.jsonl", "my/compared_paid.jsonl", "outputs/chat/ppo+reference-seed0/huggingface"],
    "from_critiques": [
        "my/dialogues_judged.jsonl",
        "my/compared_ilf.jsonl",
        "outputs/chat/rltf_sd-seed0/adapter",
        "outputs/fiber-seed0/huggingface",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("page", JOURNEYS, ids=name_of)
def test_a_journey_ends_where_its_page_says(page, journey, capsys):
    """From nothing to a trained, compared and exported model; `compare` says who won."""
    journey.do(page.read_text())
    assert [path for path in LEFT[page.stem] if not (journey.folder / path).exists()] == []
    assert "policy against start: win rate" in capsys.readouterr().out
    assert not list(journey.folder.glob("outputs/*-seed0-2")), "a command is run that was run before"


@pytest.mark.slow
def test_the_example_of_a_source_changes_the_reply(journey):
    """The conversation about fiber, as it stands in the page: once it is imitated, the reply names the source."""
    (block,) = [b for b in page_blocks((ROOT / "docs/from_critiques.md").read_text()) if b.file == "my/fiber.jsonl"]
    Path("fiber.jsonl").write_text(block.text)
    fit = "fit --config conf/chat/sft.yaml --data.path fiber.jsonl --data.val_share 0 --data.minibatches 1"
    every = "--model.policy.lora null --model.lr 0.002 --trainer.max_epochs 60"
    main(f"{fit} {every} --trainer.logger false --trainer.enable_progress_bar false --run_dir changed".split())
    replies = []
    for folder in ("my/model", "changed/huggingface"):
        sample = "predict --config conf/chat/sample.yaml --data.task.path fiber.jsonl --data.greedy true"
        policy = f"--model.policy.weights {folder} --run_dir said_by_{len(replies)}"
        main(f"{sample} {policy} --trainer.logger false --trainer.enable_progress_bar false".split())
        replies += [read(f"said_by_{len(replies)}/predictions/replies.jsonl")[0].responses[0]]
    assert "USDA" not in replies[0] and replies[1].strip().startswith("As per the USDA Nutrient Database")


@pytest.mark.parametrize("page", [*JOURNEYS, ROOT / "docs/start/index.md"], ids=name_of)
def test_a_journey_is_short(page):
    assert len(page.read_text()) <= 8000


# ---- the reading of pages


def test_a_block_is_of_the_file_that_the_sentence_before_it_names_last():
    page = "Of `a.py`.\n\nFirst `b.py`, then `c.yaml`:\n\n```yaml\nx: 1\n```\n\nNo file here:\n\n```yaml\ny: 2\n```\n"
    block_with_name, block_without_name = page_blocks(page)
    assert (block_with_name.file, block_with_name.text, block_without_name.file) == ("c.yaml", "x: 1\n", None)


def test_comments_say_what_is_fast_and_what_is_not_run():
    page = "Run:\n\n<!-- fast: --data.prompts 2 -->\n\n```bash\nls\n```\n\n<!-- not run: a key -->\n```bash\nls\n```\n"
    first, second = page_blocks(page)
    assert first.fast == "--data.prompts 2" and first.is_run and not second.is_run


def test_a_page_writes_its_files_and_runs_its_commands(tmp_path):
    page = 'In `a/b.py`:\n\n```python\nprint("hello")\n```\n\nThen:\n\n```bash\npython a/b.py > said  # so\n```\n'
    run_page(page, tmp_path)
    assert (tmp_path / "said").read_text() == "hello\n"
    with pytest.raises(AssertionError, match="no-such-command"):
        run_page("```bash\nno-such-command\n```\n", tmp_path)


def test_a_fit_is_cut_down_and_other_commands_are_not():
    show = "python -m data_modules.feedback show x"
    assert fast(show, "--data.prompts 2") == show
    words = fast("python -m lightning_nlf fit --config x.yaml", "--data.prompts 2")
    assert "--trainer.max_epochs 1 " in words and words.endswith(" --data.prompts 2")
    assert "max_epochs" not in fast("python -m lightning_nlf predict --config x.yaml")
    helps = "python -m lightning_nlf fit --model.help x.Policy"
    assert fast(helps) == helps
    assert commands("a \\\n b  # c\nd") == ["a   b", "d"]
    assert Block("bash", "", "").file is None
