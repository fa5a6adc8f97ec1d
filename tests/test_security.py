"""SECURITY.md: every test and file that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECURITY = (ROOT / "SECURITY.md").read_text()
TESTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "tests").rglob("*.py"))}


def test_every_test_that_it_names_is_there():
    names = set(re.findall(r"\btest_\w+\b(?!\.py)", SECURITY))
    defined = {name for text in TESTS.values() for name in re.findall(r"def (test_\w+)", text)}
    assert len(names) > 30
    assert sorted(names - defined) == []


def test_every_file_that_it_names_is_there():
    files = set(re.findall(r"[\w/]+\.py\b", SECURITY))
    assert [name for name in sorted(files) if not any(path.endswith(name) for path in TESTS)] == []


def test_every_sort_of_input_from_elsewhere_has_its_section():
    sections = re.findall(r"^## (.+)$", SECURITY, re.M)
    assert {"Checkpoints and registered models", "Model folders", "What people and models write"} < set(sections)
    assert {"Judges' answers", "Run folders and journals", "Files of feedback"} < set(sections)
