"""The comment above the settings of a yaml: its parts, and figures that are those of the results files."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.conf_headers import headers, read_headers
from lightning_nlf.cli.given_config import given_config
from lightning_nlf.moved_yamls import arguments
from lightning_nlf.studies.reader import read as read_study
from lightning_nlf.studies.statistics import rounded_down
from tests.documents import ROOT

RESULTS = ROOT / "benchmarks" / "results"
HEADERS = {header.name: header for header in headers()}
CHAT = {name for name in HEADERS if name.startswith("chat/")}  # test_docs.py has their figures
INTERVAL = r"\S+ \[\S+ \S+\]"  # 0.879 [0.859, 0.898]


def settings(name):
    """What a yaml or a variant sets, without comments."""
    return given_config(arguments(ROOT / "conf", name))


def strings(node):
    """All text values of a yaml."""
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [node] if isinstance(node, str) else [text for value in values for text in strings(value)]


def needed(name):
    """The yamls whose run folders its settings name, each after those that it needs itself."""
    folders = [re.match(r"outputs/(\w+/\w+)-seed", text) for text in strings(settings(name))]
    direct = dict.fromkeys(folder[1] for folder in folders if folder)
    return list(dict.fromkeys(run for folder in direct for run in (*needed(folder), folder)))


HEADER = """\
# Direct preference optimisation, DPO (https://arxiv.org/abs/2305.18290). Pairs come from
# a file. There is no reward model.
#
# Run first: conf/a/sft.yaml, conf/a/sample.yaml.
#
#     python -m lightning_nlf fit \\
#         --config conf/a/dpo.yaml
#
# Reached: 0.9 [0.8, 1.0] (mean of 3 seeds, two cores; `python benchmarks/a.py`); labels: 3. No more.
seed_everything: 0 # the seed
"""


@pytest.fixture
def parsed(tmp_path):
    def parse(text):
        path = tmp_path / "a" / "dpo.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return read_headers(path, tmp_path)

    return parse


def test_the_parts_of_a_header(parsed):
    (header,) = parsed(HEADER)
    assert header.method == "Direct preference optimisation, DPO"
    assert header.papers == ("https://arxiv.org/abs/2305.18290",)
    assert header.run_first == ("conf/a/sft.yaml", "conf/a/sample.yaml")
    assert header.command == "python -m lightning_nlf fit --config conf/a/dpo.yaml"
    assert header.reached == "0.9 [0.8, 1.0]; labels: 3. No more."
    assert "the seed" not in header.text


VARIANT = """#
# Variant ties: DPO with ties (https://arxiv.org/abs/2409.17431). Two replies may tie.
#
#     python -m lightning_nlf fit --config conf/a/dpo.yaml --model mine.Ties \\
#         --data.use '[ranking, score]' --run_dir outputs/a/ties-seed0
#
# Not measured: it was not run.
"""


def test_the_parts_of_a_variant(parsed):
    first, variant = parsed(HEADER.replace("seed_everything", VARIANT + "seed_everything"))
    assert (first.name, first.yaml, first.flags) == ("a/dpo", "a/dpo", [])
    assert (variant.name, variant.yaml, variant.method) == ("a/ties", "a/dpo", "DPO with ties")
    assert variant.flags == ["--model", "mine.Ties", "--data.use", "[ranking, score]"]
    assert variant.run_first == first.run_first and variant.result.startswith("Not measured")
    assert "0.9" in first.result and "0.9" not in variant.text


def test_a_variant_is_the_same_in_its_header_and_in_the_table_of_moved_yamls():
    """So an old path gives the flags, and everything that is run by name runs the command of the header."""
    variants = {name: header for name, header in HEADERS.items() if header.yaml != name}
    assert len(variants) > 20
    for name, header in variants.items():
        assert arguments(ROOT / "conf", name) == ["--config", str(ROOT / f"conf/{header.yaml}.yaml"), *header.flags]


@pytest.mark.parametrize(
    "part, message",
    [("Reached: ", "Reached: or Not measured:"), ("a/dpo.yaml", "no command names conf/a/dpo.yaml")],
)
def test_a_header_without_a_part_is_refused(parsed, part, message):
    with pytest.raises(ValueError, match=message):
        parsed(HEADER.replace(part, ""))


def test_a_method_fits_in_a_table():
    assert {header.yaml for header in HEADERS.values()} == {
        path.relative_to(ROOT / "conf").with_suffix("").as_posix() for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert [name for name, header in HEADERS.items() if len(header.method) > 120] == []


def test_a_header_names_all_runs_that_its_yaml_needs():
    """In an order in which they can be run; what its own commands make is not named again."""
    for name, header in HEADERS.items():
        places = (r"--run_dir outputs/(\S+)-seed0", r"--config conf/(\S+)\.yaml")
        runs_of_commands = [
            next(filter(None, (re.search(p, line) for p in places)), "??")[1] for line in header.commands
        ]
        runs = [f"conf/{run}.yaml" for run in needed(name) if run not in runs_of_commands]
        assert list(header.run_first) == runs, name


def test_run_folders_in_commands_are_named_by_the_path_of_a_yaml():
    folders = {folder for header in HEADERS.values() for folder in re.findall(r"outputs/(\w+/\w+)-seed0", header.text)}
    variants = {"reviews/rlaif_ppo"}  # of conf/reviews/ppo.yaml, by a flag
    assert folders and sorted(folders - variants - HEADERS.keys()) == []


def test_links_of_papers_are_whole():
    links = {link for header in HEADERS.values() for link in header.papers}
    kinds = r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\S+|github\.com/\w+/\w+|ericmitchell\.ai/cdpo\.pdf)"
    assert links and [link for link in sorted(links) if not re.fullmatch(kinds, link)] == []


def rows(name):
    """(name of a row, the rest of it) of all tables of a results file, a moved yaml under its present name."""
    with (ROOT / "conf/moved.csv").open(newline="") as file:
        moved = {row["old"].removesuffix(".yaml"): row["new"].removesuffix(".yaml") for row in csv.DictReader(file)}
        moved = {old: new for old, new in moved.items() if " " not in new}  # the others are names of variants
    lines = re.findall(r"^\| ([\w/]+) \|(.*)\|$", (RESULTS / f"{name}.md").read_text(), re.M)
    return [(moved.get(row, row), columns) for row, columns in lines]


def figures_of_rows():
    """The first figure with an interval of each yaml that has a row of its own."""
    figures = figures_of_studies()
    for table in ("speedup", "rlhf", "process", "maze"):
        for name, columns in rows(table):
            if name in HEADERS and (intervals := re.findall(INTERVAL, columns)):
                figures.setdefault(name, intervals[0])
    return figures


def figures_of_studies():
    """The figure of each yaml that is an arm of a study with a committed report: median and quartiles."""
    names = {tuple(arguments(Path("conf"), name)): name for name in HEADERS}
    figures: dict[str, str] = {}
    for path in sorted(Path("benchmarks/studies").glob("*.yaml")):
        report = RESULTS / f"{path.stem}.md"
        text = report.read_text() if report.is_file() else ""
        for arm in read_study(str(path)).arms.values() if text.startswith("# Study: ") else ():
            (columns,) = re.findall(rf"^\| {arm.name} \|(.*)\|$", text, re.M)
            figures[names[arm.words]] = columns.split("|")[1].strip()
    return figures


def figures_of_arms():
    """What each yaml of `benchmarks/feedback.py` may quote: "arm figure" of one of its arms, replies sampled."""
    studies = yaml.safe_load((ROOT / "benchmarks" / "feedback.yaml").read_text())
    quotes: dict[str, list[str]] = {}
    for study in ("convergence", "comparison"):
        table = (RESULTS / f"feedback_{study}.md").read_text()
        for arm, changes in studies[study]["arms"].items():
            (sampled,) = re.findall(rf"^\| {arm} \| [^|]+ \| ([^|]+) \|", table.split("\n\n")[0], re.M)
            quotes.setdefault(changes.get("yaml", "answers/sft"), []).append(f"{arm} {sampled}")
    return quotes


def test_every_yaml_says_what_it_reached(monkeypatch):
    """It quotes the figure of its row in the results files, or gives the reason why there is none."""
    monkeypatch.chdir(ROOT)  # the yamls of studies name those of conf/
    quotes = {name: [figure] for name, figure in figures_of_rows().items()} | figures_of_arms()
    assert len(quotes) > 60 and quotes.keys() <= HEADERS.keys()
    for name, header in HEADERS.items():
        if name in quotes:
            assert any(quote in header.result for quote in quotes[name]), name
        elif name not in CHAT and name != "reviews/reward":
            assert re.fullmatch(r"Not measured: (\S+ ){2,}\S+\.", header.result) and "[" not in header.result, name


def test_all_figures_with_an_interval_are_in_the_results_files():
    results = " ".join(path.read_text() for path in RESULTS.glob("*.md"))
    figures = [(name, figure) for name, header in HEADERS.items() for figure in re.findall(INTERVAL, header.text)]
    assert len(figures) > 100 and [pair for pair in figures if pair[1] not in results] == []


@pytest.mark.parametrize("name", ["joint", "injection", "dagger", "bc"])
def test_yamls_claim_the_lower_bounds_of_the_study(name):
    summary = json.loads((RESULTS / "speedup.json").read_text())["summary"][f"{name}/all"]
    mode, sampled = (summary[measure]["corrected"][1] for measure in ("sust", "sto"))
    claim = f"at least {rounded_down(mode)}× over tuned REINFORCE, {rounded_down(sampled)}× with sampled actions"
    assert claim in HEADERS["injection" if name == "injection" else f"pendulum/{name}"].result


@pytest.mark.parametrize("body", ["double_pendulum", "hopper"])
@pytest.mark.parametrize("arm", ["joint", "injection"])
def test_yamls_of_bodies_claim_the_bound_of_their_study(body, arm):
    sentence = rf"^- {arm} needs fewer environment steps than ppo: at least (\S+) times fewer,"
    (bound,) = re.findall(sentence, (RESULTS / f"{body}.md").read_text(), re.M)
    assert f"at least {bound} times fewer steps than PPO" in HEADERS[f"bodies/{body}_{arm}"].result
