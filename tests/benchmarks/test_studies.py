"""The yamls of our own studies."""

from pathlib import Path

import pytest

from lightning_nlf.studies.reader import read
from tests.documents import ROOT

STUDIES = sorted((ROOT / "benchmarks" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_can_be_read_and_commits_its_report(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header has the command, its seeds are none that a yaml was tuned on, and its arms are yamls of conf/."""
    monkeypatch.chdir(ROOT)
    file = path.relative_to(ROOT)
    study = read(str(file))
    assert f"#     python -m lightning_nlf study {file}\n" in path.read_text()
    assert study.results == Path("benchmarks/results") / path.stem
    assert min(study.report) >= 1000 and all(arm.words[1].startswith("conf/") for arm in study.arms.values())
