"""Import directions: data_modules → the batch ← objectives ← modules ← networks ← language; only a yaml names both."""

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
    "moved_yamls",
    "numbers",
    "batch",
    "data_source",
    "maths",
    "language",
    "networks",
    "generators",
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
# Private names allowed outside private_names.py: os._exit is documented, and torch has no public name for the others.
PRIVATE = {"_exit", "_foreach_copy_", "_modules"}


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, at any depth of its code."""
    return imported(path.read_text(), path.relative_to(ROOT).parts[:-1])


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """Absolute names of everything that the source of a file in `package` imports; `from . import x` is resolved."""
    matches: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            matches |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            matches |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return matches


def test_relative_imports_are_seen():
    """Without this, the rules below would miss relative imports."""
    source = "from .. import rollout\ndef f():\n    from ..rollout import shuffled\n"
    assert imported(source, ("data_modules", "text")) == {
        "data_modules",
        "data_modules.rollout",
        "data_modules.rollout.shuffled",
    }


Nodes = Callable[[ast.AST], Iterator[ast.AST]]


def at_load(node: ast.AST) -> Iterator[ast.AST]:
    """Code that runs when a file is imported: excludes functions and `if TYPE_CHECKING` blocks."""
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not typing_only and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from at_load(child)


def import_graph(package: str, nodes: Nodes) -> dict[str, set[str]]:
    """Modules of a package, each with the modules of the package that it imports."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules_of(package)}
    graph: dict[str, set[str]] = {name.removesuffix(".__init__"): set() for name in paths}
    for name, path in paths.items():
        for node in nodes(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                targets = imported(ast.unparse(node), path.relative_to(ROOT).parts[:-1]) & graph.keys()
                # `from package import module` needs nothing from the package's `__init__`
                deepest = {
                    target for target in targets if not any(longer.startswith(f"{target}.") for longer in targets)
                }
                graph[name.removesuffix(".__init__")] |= deepest
    return graph


def test_a_circle_is_seen(tmp_path, monkeypatch):
    """a imports b, and b imports a only for annotations, in a function, or at load time."""
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
    """There are no import cycles; in `benchmarks` not even by imports inside functions."""
    TopologicalSorter(import_graph(package, nodes)).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("path", modules_of("data_modules"), ids=str)
def test_data_modules_know_the_contract_only(path):
    ours = {name for name in imports(path) if name.split(".")[0] == "lightning_nlf"}
    allowed = ("lightning_nlf.batch", "lightning_nlf.maths", "lightning_nlf.numbers", "lightning_nlf.moved_yamls")
    assert all(name.startswith(allowed) for name in ours), ours


def test_judgements_lie_below_text_and_text_below_feedback():
    for room, above in (("judgements", ("text", "feedback")), ("text", ("feedback",))):
        for path in modules_of(f"data_modules/{room}"):
            reached = {name.split(".")[1] for name in imports(path) if name.startswith("data_modules.")}
            assert not reached & {*above}, path


def test_what_serves_every_text_task_imports_none():
    """Only `data_modules.text` itself imports tasks, because yamls name them there."""
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
        "openai": "generators/server.py",
        "httpx2": "generators/server.py",
        "vllm": "generators/weight_transfer.py",
    }
    for library in {name.split(".")[0] for name in imports(path)} & optional.keys():
        assert path == ROOT / "lightning_nlf" / optional[library]
    at_once = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {name.split(".")[0] for node in at_once for name in imported(ast.unparse(node), ())}
    assert not roots & optional.keys()


def floor_of(path: Path) -> str:
    return path.relative_to(ROOT / "lightning_nlf").with_suffix("").parts[0]


# tracking, entry points and checkpoint files have no floor, because they serve all floors
@pytest.mark.parametrize("path", [path for path in modules_of("lightning_nlf") if floor_of(path) in FLOORS], ids=str)
def test_floors_import_downwards(path):
    """A file imports only from its own floor or lower ones."""
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
    """Every call of transformers sets trust_remote_code=False, because it would otherwise ask on the terminal."""
    calls = 0
    for path in [*modules_of("data_modules"), *modules_of("lightning_nlf")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("from_pretrained", "from_config"):
                keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert keywords.get("trust_remote_code") == "False", f"{path.name}:{call.lineno}"
                calls += 1
    assert calls >= 3


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name != "_"


def members(path: Path) -> set[str]:
    """Members of all classes in a file: methods, class attributes, and attributes assigned to `self`."""
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
    """Private names of other libraries in a source: imported, as attributes, or in `getattr`.

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
    """Without this, the rule below could miss private names."""
    source = "from a._b import _c\nimport d._e\ny._f, getattr(y, '_g'), self._h, self._i\n"
    source += "from data_modules import x\nx._j"
    assert private_names(source, {"_i"}) == {"_b", "_c", "_e", "_f", "_g", "_h"}


OURS = set().union(*(members(path) for package in ("lightning_nlf", "data_modules") for path in modules_of(package)))


@pytest.mark.parametrize("path", [*modules_of("lightning_nlf"), *modules_of("data_modules")], ids=str)
def test_private_names_of_libraries_stay_in_their_file(path):
    if path != ROOT / "lightning_nlf" / "private_names.py":
        assert not private_names(path.read_text(), OURS) - PRIVATE


def calls_of_bases(source: str) -> list[str]:
    """Calls of `super()` outside `__init__` and of `Mixin.method(self, …)`, each with its line."""
    matches = []
    for function in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]:
        for call in [node for node in ast.walk(function) if isinstance(node, ast.Call)]:
            name, first = ast.unparse(call.func), ast.unparse(call.args[0]) if call.args else ""
            chained = name == "super" and function.name != "__init__"
            assigned = first == "self" and re.fullmatch(r"\w*(Objective|Policy|Agent|Reward|Module)\.\w+", name)
            if chained or assigned:
                matches.append(f"{call.lineno}: {ast.unparse(call)}")
    return matches


def test_calls_of_bases_are_seen():
    source = "class A(B):\n    def __init__(self):\n        super().__init__()\n    def terms(self):\n        "
    assert not calls_of_bases(source + "return 1")
    assert calls_of_bases(source + "return super().terms()") == ["5: super()"]
    assert calls_of_bases(source + "return DPOObjective.terms(self, 1)") == ["5: DPOObjective.terms(self, 1)"]


@pytest.mark.parametrize("path", modules_of("lightning_nlf/objectives"), ids=str)
def test_no_hook_calls_another(path):
    """No hook calls another one, except in metrics, which extend torchmetrics."""
    source = path.read_text()
    metrics = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Perplexity"]
    assert len(calls_of_bases(source)) == sum(len(calls_of_bases(ast.unparse(metric))) for metric in metrics)


def steps_up(cls: type, root: type) -> int:
    """Length of the longest path of inheritance from `cls` to `root`; -1 if there is none."""
    paths = [steps_up(base, root) for base in cls.__bases__]
    return 0 if cls is root else max((n + 1 for n in paths if n >= 0), default=-1)


def test_an_exported_class_stands_few_steps_above_lightning():
    exported = [cls for cls in vars(objectives).values() if isinstance(cls, type)]
    assert len(exported) >= 45
    assert max(steps_up(cls, LightningModule) for cls in exported) <= 5
