"""The page docs/metrics.md has every metric, and no other."""

import ast
import re

from tests.documents import ROOT

PAGE = (ROOT / "docs/metrics.md").read_text()
GLOSSARY = set(re.findall(r"`((?:(?:train|val|system)/)?[a-z][\w/]*)", PAGE))
FOLDERS = (ROOT / "lightning_nlf", ROOT / "data_modules")
OURS = [ast.parse(path.read_text()) for folder in FOLDERS for path in folder.rglob("*.py")]


def statistics_of(tree, attribute):
    """The names that a DataModule puts into its `counters` or `statistics`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Attribute) and target.attr == attribute:
                keys = [key for item in ast.walk(node.value) if isinstance(item, ast.Dict) for key in item.keys]
                texts = [part.value for key in keys if key for part in ast.walk(key) if isinstance(part, ast.Constant)]
                yield from (text for text in texts if isinstance(text, str))


def logged_names(tree):
    """The figures that an objective notes, and the names of its terms, by a call, a class or a function of figures."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("self.note", "Term"):
            yield from (name.value for name in node.args[:1] if isinstance(name, ast.Constant))
        elif isinstance(node, ast.FunctionDef) and node.name.endswith("_figures"):
            dicts = [item for item in ast.walk(node) if isinstance(item, ast.Dict)]
            yield from (key.value for item in dicts for key in item.keys if isinstance(key, ast.Constant))
        elif isinstance(node, ast.ClassDef):
            texts = [
                line.value
                for line in node.body
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "term"
            ]
            yield from (text.value for text in texts if isinstance(text, ast.Constant))


def test_every_metric_is_in_the_glossary():
    metrics = {f"train/{name}" for tree in OURS for name in [*logged_names(tree), *statistics_of(tree, "statistics")]}
    counters = {name for tree in OURS for name in statistics_of(tree, "counters")}
    counters -= {"calls", "cached", "retries", "prompt_tokens", "completion_tokens"}  # of an endpoint, printed alone
    assert len(metrics) > 40 and len(counters) > 5
    assert sorted((metrics | counters) - GLOSSARY) == []


def test_every_name_of_the_glossary_is_in_the_code():
    source = "\n".join(ast.unparse(tree) for tree in OURS)
    last = {name: name.rpartition("/")[2].removesuffix("_sampled") for name in GLOSSARY}
    assert [name for name, word in sorted(last.items()) if not re.search(rf"\b{word}\b", source)] == []
