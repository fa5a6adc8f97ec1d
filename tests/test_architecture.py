"""Data flows one way: data_modules → the batch ← objectives ← modules ← networks ← language; only a yaml names both."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from lightning import LightningModule

from lightning_nlf import objectives

ROOT = Path(__file__).parents[1]
FLOORS = [
    "private_names",
    "numbers",
    "batch",
    "data_source",
    "maths",
    "language",
    "networks",
    "construction",
    "compatibility",
    "objective",
    "modules",
    "rewards",
    "objectives",
    "example_batch",
    "experts",
    "scorers",
    "callbacks",
    "cli",
]
LEAVES = (ROOT / "lightning_nlf" / "batch.py", *(ROOT / "lightning_nlf" / "maths").glob("*.py"))
STDLIB = {"__future__", "collections", "dataclasses", "math", "typing"}
# What private names may be used outside private_names.py: os._exit is documented, and torch has no public name for two.
PRIVATE = {"_exit", "_foreach_copy_", "_modules"}


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Absolute names of all that a file imports, at any depth of its code."""
    return imported(path.read_text(), path.relative_to(ROOT).parts[:-1])


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """The same for the source of a file in `package`; `from . import x` is resolved."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def test_relative_imports_are_seen():
    """The rules below would be blind without this."""
    source = "from .. import rollout\ndef f():\n    from ..rollout import shuffled\n"
    assert imported(source, ("data_modules", "text")) == {
        "data_modules",
        "data_modules.rollout",
        "data_modules.rollout.shuffled",
    }


Nodes = Callable[[ast.AST], Iterator[ast.AST]]


def at_load(node: ast.AST) -> Iterator[ast.AST]:
    """The code that runs when a file is imported: not that of functions, nor below `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not typing_only and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from at_load(child)


def import_graph(package: str, nodes: Nodes) -> dict[str, set[str]]:
    """The modules of a package, and which of them each imports."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules_of(package)}
    graph: dict[str, set[str]] = {name.removesuffix(".__init__"): set() for name in paths}
    for name, path in paths.items():
        for node in nodes(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                targets = imported(ast.unparse(node), path.relative_to(ROOT).parts[:-1]) & graph.keys()
                # `from package import module` asks for nothing that stands in the package's `__init__`
                deepest = {one for one in targets if not any(other.startswith(f"{one}.") for other in targets)}
                graph[name.removesuffix(".__init__")] |= deepest
    return graph


def test_a_circle_is_seen(tmp_path, monkeypatch):
    """a imports b, and b imports a for its annotations only, or in a function, or at once."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "__init__.py").write_text("from p import a\n")
    (tmp_path / "p" / "a.py").write_text("from .b import x\n")
    for late in ("if TYPE_CHECKING:\n    from p import a", "def f():\n    import p.a"):
        (tmp_path / "p" / "b.py").write_text(late)
        assert import_graph("p", at_load) == {"p": {"p.a"}, "p.a": {"p.b"}, "p.b": set()}
        assert import_graph("p", ast.walk)["p.b"] == {"p.a"}
    (tmp_path / "p" / "b.py").write_text("try:\n    from . import a\nexcept ImportError:\n    pass")
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph("p", at_load)).prepare()


@pytest.mark.parametrize(
    "package, nodes", [("benchmarks", ast.walk), ("data_modules", at_load), ("lightning_nlf", at_load)]
)
def test_no_import_leads_back(package, nodes):
    """In `benchmarks` not even one that waits in a function."""
    TopologicalSorter(import_graph(package, nodes)).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", modules_of("data_modules"), ids=str)
def test_data_modules_know_the_contract_only(path):
    ours = {name for name in imports(path) if name.split(".")[0] == "lightning_nlf"}
    allowed = ("lightning_nlf.batch", "lightning_nlf.maths", "lightning_nlf.numbers")
    assert all(name.startswith(allowed) for name in ours), ours


def test_judgements_lie_below_text_and_text_below_feedback():
    for room, above in (("judgements", ("text", "feedback")), ("text", ("feedback",))):
        for path in modules_of(f"data_modules/{room}"):
            reached = {name.split(".")[1] for name in imports(path) if name.startswith("data_modules.")}
            assert not reached & {*above}, path


def test_what_serves_every_text_task_imports_none():
    """`data_modules.text` itself does: there yamls name the tasks."""
    generic = [path for path in modules_of("data_modules/text") if path.name != "__init__.py"]
    assert len(generic) > 20
    for path in generic:
        assert not [name for name in imports(path) if name.startswith(("data_modules.tasks", "data_modules.lmrl"))], (
            path
        )


@pytest.mark.parametrize("path", modules_of("lightning_nlf"), ids=str)
def test_lightning_nlf_knows_no_environment(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"data_modules", "gymnasium", "mujoco", "tokenizers"}


@pytest.mark.parametrize("path", modules_of("lightning_nlf"), ids=str)
def test_optional_libraries_stay_in_their_file_and_wait_until_they_are_used(path):
    optional = {
        "transformers": "language/hf_model.py",
        "peft": "networks/lora.py",
        "huggingface_hub": "language/hf_layout.py",
    }
    for library in {name.split(".")[0] for name in imports(path)} & optional.keys():
        assert path == ROOT / "lightning_nlf" / optional[library]
    at_once = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {name.split(".")[0] for node in at_once for name in imported(ast.unparse(node), ())}
    assert not roots & optional.keys()


def floor_of(path: Path) -> str:
    return path.relative_to(ROOT / "lightning_nlf").with_suffix("").parts[0]


# tracking, entry points and checkpoint files stand on no floor: they serve every one
@pytest.mark.parametrize("path", [path for path in modules_of("lightning_nlf") if floor_of(path) in FLOORS], ids=str)
def test_floors_import_downwards(path):
    """A file imports from its own floor or from those below it, never from above."""
    above = FLOORS[FLOORS.index(floor_of(path)) + 1 :]
    reached = {name.split(".")[1] for name in imports(path) if name.startswith("lightning_nlf.")}
    assert not reached & set(above)


@pytest.mark.parametrize("path", LEAVES)
def test_leaves_import_torch_only(path):
    roots = {name.split(".")[0] for name in imports(path)} - STDLIB
    assert roots <= {"torch", "lightning_nlf"}
    ours = {name for name in imports(path) if name.startswith("lightning_nlf")}
    below = ("lightning_nlf.batch", "lightning_nlf.maths", "lightning_nlf.numbers")
    assert all(name.startswith(below) for name in ours), ours


def test_no_model_folder_may_bring_code():
    """Whatever reads one by transformers says so: without a word it would ask on the terminal."""
    calls = 0
    for path in [*modules_of("data_modules"), *modules_of("lightning_nlf")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("from_pretrained", "from_config"):
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert given.get("trust_remote_code") == "False", f"{path.name}:{call.lineno}"
                calls += 1
    assert calls >= 3


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name != "_"


def members(path: Path) -> set[str]:
    """What classes of a file define: methods, class attributes, what is assigned to `self`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            methods = [line for line in node.body if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef)]
            attributes = [leaf for line in node.body if line not in methods for leaf in ast.walk(line)]
            names |= {method.name for method in methods}
            names |= {leaf.id for leaf in attributes if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def private_names(source: str, ours: set[str]) -> set[str]:
    """Private names of other libraries in a source: imported, behind a dot, in `getattr`.

    Args: ours: members of our own classes.
    """
    names, modules = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (
            node.level or (node.module or "").startswith(("lightning_nlf", "data_"))
        ):
            modules |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in modules:
            names.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            names |= {word.value for word in node.args[1:2] if isinstance(word, ast.Constant)}
    return {name for name in names if is_private(name)} - ours


def test_private_names_are_seen():
    """The rule below would be blind without this."""
    source = "from a._b import _c\nimport d._e\ny._f, getattr(y, '_g'), self._h, self._i\n"
    source += "from data_modules import x\nx._j"
    assert private_names(source, {"_i"}) == {"_b", "_c", "_e", "_f", "_g", "_h"}


OURS = set().union(*(members(path) for package in ("lightning_nlf", "data_modules") for path in modules_of(package)))


@pytest.mark.parametrize("path", [*modules_of("lightning_nlf"), *modules_of("data_modules")], ids=str)
def test_private_names_of_libraries_stay_in_their_file(path):
    if path != ROOT / "lightning_nlf" / "private_names.py":
        assert not private_names(path.read_text(), OURS) - PRIVATE


def calls_of_bases(source: str) -> list[str]:
    """`super()` outside of `__init__`, and `Mixin.method(self, …)` in its place; what each is, with its line."""
    found = []
    for function in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]:
        for call in [node for node in ast.walk(function) if isinstance(node, ast.Call)]:
            name, first = ast.unparse(call.func), ast.unparse(call.args[0]) if call.args else ""
            chained = name == "super" and function.name != "__init__"
            named = first == "self" and re.fullmatch(r"\w*(Objective|Policy|Agent|Reward|Module)\.\w+", name)
            if chained or named:
                found.append(f"{call.lineno}: {ast.unparse(call)}")
    return found


def test_calls_of_bases_are_seen():
    source = "class A(B):\n    def __init__(self):\n        super().__init__()\n    def terms(self):\n        "
    assert not calls_of_bases(source + "return 1")
    assert calls_of_bases(source + "return super().terms()") == ["5: super()"]
    assert calls_of_bases(source + "return DPOObjective.terms(self, 1)") == ["5: DPOObjective.terms(self, 1)"]


@pytest.mark.parametrize("path", modules_of("lightning_nlf/objectives"), ids=str)
def test_no_hook_calls_another(path):
    """But a metric, which is torchmetrics' to extend."""
    source = path.read_text()
    metrics = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Perplexity"]
    assert len(calls_of_bases(source)) == sum(len(calls_of_bases(ast.unparse(metric))) for metric in metrics)


def steps_up(cls: type, root: type) -> int:
    """The longest path of inheritance from `cls` to `root`; -1 where there is none."""
    paths = [steps_up(base, root) for base in cls.__bases__]
    return 0 if cls is root else max((n + 1 for n in paths if n >= 0), default=-1)


def test_an_exported_class_stands_few_steps_above_lightning():
    exported = [cls for cls in vars(objectives).values() if isinstance(cls, type)]
    assert len(exported) >= 45
    assert max(steps_up(cls, LightningModule) for cls in exported) <= 5
