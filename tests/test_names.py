"""Names are nouns of the field: a variable, parameter, function or class is not a bare participle or pronoun."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTICIPLES = """asked done drawn found given gone got heard held judged kept known learned loaded lost made meant met
    named paid played said saved seen sent shown spoken stored taken told wanted written"""
PRONOUNS = "both each here more most one ones other others own same some stuff there thing things what which who whose"
ROOMS = "common handler helpers manager utils"
BANNED = frozenset(f"{PARTICIPLES} {PRONOUNS} {ROOMS}".split())


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a file gives to something, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)):
                yield name, node.lineno


@pytest.mark.parametrize("top", ["lightning_nlf", "data_modules", "benchmarks", "tests"])
def test_no_name_is_a_bare_participle_or_pronoun(top):
    banned = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sorted((ROOT / top).rglob("*.py"))
        for name, line in names(ast.parse(path.read_text()))
        if name.strip("_") in BANNED
    ]
    assert banned == []


@pytest.mark.parametrize("top", ["lightning_nlf", "data_modules", "benchmarks", "tests"])
def test_no_file_or_folder_is_a_room_for_anything(top):
    assert [path for path in (ROOT / top).rglob("*") if path.stem in ROOMS.split()] == []


@pytest.mark.parametrize("source", ["found = 1", "def said(): ...", "self.own = 1", "lambda one: 1"])
def test_a_banned_name_is_seen(source):
    assert {name for name, _ in names(ast.parse(source))} & BANNED
