"""Data flows one way: data_modules → the batch contract ← objectives ← modules ← networks; only a yaml names both."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    "numbers",
    "batch",
    "functional",
    "preferences",
    "networks",
    "generation",
    "construction",
    "objective",
    "modules",
    "reliability",
    "reward_module",
    "objectives",
    "experts",
    "scorers",
    "callbacks",
    "cli",
]
LEAVES = ("lightning_nlf/batch.py", "lightning_nlf/functional.py")
STDLIB = {"__future__", "collections", "dataclasses", "typing"}


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


@pytest.mark.parametrize("path", modules_of("data_modules"), ids=str)
def test_data_modules_know_the_contract_only(path):
    ours = {name for name in imports(path) if name.split(".")[0] == "lightning_nlf"}
    allowed = ("lightning_nlf.batch", "lightning_nlf.functional", "lightning_nlf.numbers")
    assert all(name.startswith(allowed) for name in ours), ours


@pytest.mark.parametrize("path", modules_of("lightning_nlf"), ids=str)
def test_lightning_nlf_knows_no_environment(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"data_modules", "gymnasium", "mujoco", "tokenizers"}


@pytest.mark.parametrize("path", modules_of("lightning_nlf"), ids=str)
def test_optional_libraries_stay_in_their_file_and_wait_until_they_are_used(path):
    optional = {"transformers": "hf_model.py", "peft": "lora.py", "huggingface_hub": "hf_layout.py"}
    for library in {name.split(".")[0] for name in imports(path)} & optional.keys():
        assert path == ROOT / "lightning_nlf" / "networks" / optional[library]
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
    roots = {name.split(".")[0] for name in imports(ROOT / path)} - STDLIB
    assert roots <= {"torch", "lightning_nlf"}
    ours = {name for name in imports(ROOT / path) if name.startswith("lightning_nlf")}
    assert all(name.startswith(("lightning_nlf.batch", "lightning_nlf.numbers")) for name in ours), ours
