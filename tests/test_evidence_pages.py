"""The pages docs/evidence.md and docs/speed.md have the tables of benchmarks/results, to the letter."""

import pytest

from tests.documents import ROOT, with_includes

EVIDENCE = with_includes(ROOT / "docs/evidence.md")


def results(name):
    return (ROOT / "benchmarks" / "results" / f"{name}.md").read_text().strip().split("\n\n")


@pytest.mark.parametrize(
    "name",
    [
        "pendulum",
        "tokens",
        "double_pendulum",
        "hopper",
        "speedup",
        "rlhf",
        "process",
        "maze",
        "feedback_convergence",
        "feedback_comparison",
    ],
)
def test_tables_are_those_of_the_results_files(name):
    """All of them but the long list of tuned values, which has a link. Where they come from is on the page too."""
    tables = [part for part in results(name) if part.startswith("|") and "chosen of 16 cells" not in part]
    assert tables and [table for table in tables if EVIDENCE.count(table) != 1] == []
    (source,) = [part for part in results(name) if f"`python {source_of(name)}" in part]
    assert EVIDENCE.count(source) == 1


def source_of(name):
    """The command that writes a results file."""
    study = f"benchmarks/studies/{name}.yaml"
    is_study = (ROOT / study).is_file() and results(name)[0].startswith("# Study: ")
    return f"-m lightning_nlf study {study}" if is_study else f"benchmarks/{name.partition('_')[0]}.py"


def test_the_long_list_of_tuned_values_is_left_out():
    assert "chosen of 16 cells" not in EVIDENCE and any("chosen of 16 cells" in part for part in results("speedup"))


def test_the_claims_of_speed_are_those_that_were_measured():
    page = with_includes(ROOT / "docs/speed.md")
    for name in ("throughput", "text_speed"):
        first, second, *_ = results(name)
        assert page.count(first) == 1 and second not in page


def test_an_include_is_cut_at_its_texts(tmp_path):
    (tmp_path / "part.md").write_text("one\ntwo\nthree\n")
    page = tmp_path / "page.md"
    page.write_text('A.\n\n:::{include} part.md\n:start-after: "one"\n:end-before: three\n:::\n\nB.\n')
    assert with_includes(page) == "A.\n\n\ntwo\n\n\nB.\n"
