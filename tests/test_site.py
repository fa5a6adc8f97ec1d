"""The extensions of the documentation site in docs/: links to lines, docstrings as reStructuredText, diagrams."""

import sys

import pytest

from tests.documents import ROOT

sphinx = pytest.importorskip("sphinx")


@pytest.fixture(autouse=True)
def docs_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    yield
    for name in ("source_pages", "api_pages", "diagrams"):
        sys.modules.pop(name, None)


def test_a_line_is_the_one_that_holds_the_text():
    from source_pages import line_number

    lines = (ROOT / "tox.ini").read_text().splitlines()
    assert lines[line_number("tox.ini", "env_list = py") - 1] == "env_list = py" and line_number("tox.ini", None) == 1


@pytest.mark.parametrize("path, text", [("tox.ini", "no such text"), ("tox.ini", "="), ("no_such.py", "x")])
def test_a_text_that_is_not_in_exactly_one_line_is_refused(path, text):
    from source_pages import line_number

    with pytest.raises(ValueError, match=path):
        line_number(path, text)


def test_a_docstring_keeps_its_words_and_its_code():
    from api_pages import rendered

    lines = ["Minus |x|*, at *obs, of", "`a_b` and c_.", "", "Args:", "    x, y: the", "        values.", "Raises:"]
    lines += ["    ValueError: none.", "", "- one", "  more", "- two", "", "Returns (B,)."]
    text = rendered(lines)
    assert text[0] == r"Minus \|x\|\*, at \*obs, of \ ``a_b``\  and c\_."
    assert ":Args:" in text and "    - **x, y**: the values." in text and "    - **ValueError**: none." in text
    assert "- one more" in text and "- two" in text and "Returns (B,)." in text


def test_a_signature_has_the_arguments_of_all_bases_once():
    from api_pages import whole_signature

    from lightning_nlf.objectives import RLHFAgent

    signature = whole_signature(RLHFAgent)
    assert signature.startswith("(value, policy, ") and "**kwargs" not in signature
    assert all(signature.count(f" {name}=") == 1 for name in ("beta", "lam", "gamma", "clip", "optimizer"))


def test_committed_diagrams_are_those_of_the_script():
    from diagrams import DIAGRAMS, FOLDER

    assert {name: (FOLDER / name).read_text() for name in DIAGRAMS} == {name: draw() for name, draw in DIAGRAMS.items()}
