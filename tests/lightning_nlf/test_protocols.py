"""A user's class that does not implement a protocol gives a one-line error with the key, and exit code 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pytest

from lightning_nlf.cli.command_line import main
from lightning_nlf.protocols import deviation, methods_of, refuse_incomplete
from tests.documents import page_blocks

ROOT = Path(__file__).parents[2]


class Shop(Protocol):
    town: str

    def price(self, item: str) -> float: ...

    def sell(self, item: str, *, to: int = 0) -> Sequence[str]: ...


class Kiosk:
    town = "Ulm"

    def price(self, item: str) -> float:
        return 1.0

    def sell(self, item: str, *, to: int = 0) -> Sequence[str]:
        return [item]


class Street:
    def __init__(self, shop: Shop | None, name: str) -> None:
        self.shop = shop


def like(**members):
    """A kiosk with changed members. None removes a member."""
    members_left = {name: member for name, member in (vars(Kiosk) | members).items() if member is not None}
    return type("Mine", (), members_left)


def untyped(self, item):
    return 1.0


def without_arguments(self) -> float:
    return 1.0


def with_one_more(self, item: str, tax: float) -> float:
    return tax


def with_a_default(self, item: str, tax: float = 0.0) -> float:
    return tax


def unreadable(self, item: str) -> Nowhere:  # noqa: F821
    return 1.0


PRICE = "it needs the annotations of tests.lightning_nlf.test_protocols: def price(self, item: str) -> float"


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Kiosk, None),
        (like(price=with_a_default), None),
        (like(price=None), "it has no method `price`"),
        (like(price=None, sell=None), "it has no methods `price`, `sell`"),
        (like(price=without_arguments), "its method `price` has parameters (self), but needs (self, item)"),
        (like(price=with_one_more), "its method `price` has parameters (self, item, tax), but needs (self, item)"),
        (like(price=1.5), "its attribute `price` must be a method"),
        (like(price=untyped), PRICE),
        (like(price=unreadable), PRICE),
        (
            like(price=untyped, sell=lambda self, item, *, to=0: [item]),
            f"{PRICE}; def sell(self, item: str, *, to: int = 0) -> Sequence[str]",
        ),
    ],
)
def test_the_first_reason_is_reported(cls, reason):
    """An additional argument with a default is allowed, because only the required ones are compared."""
    assert deviation(cls, Shop) == reason


def test_methods_come_in_the_order_of_the_file():
    assert methods_of(Shop) == ["price", "sell"]


def test_an_attribute_is_missed_when_the_class_is_used():
    refuse_incomplete(Street, {"shop": Kiosk(), "name": "High Street"})
    refuse_incomplete(Street, {"shop": None, "name": "High Street"})
    with pytest.raises(ValueError, match="^shop: Mine is not a Shop: it has no attribute `town`$"):
        refuse_incomplete(Street, {"shop": like(town=None)(), "name": "High Street"})


# ---- on the command line, with the task of docs/add_a_task.md


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function that replaces `old` by `new` in mytask.py, starts a fit with it, and returns the error."""
    monkeypatch.chdir(tmp_path)
    blocks = page_blocks((ROOT / "docs/add_a_task.md").read_text())
    code, config = (next(block.text for block in blocks if block.language == kind) for kind in ("python", "yaml"))

    monkeypatch.syspath_prepend(tmp_path)
    Path("conf").mkdir()

    def fit(module, old, new):
        assert old in code
        Path(f"{module}.py").write_text(code.replace(old, new))
        Path("conf/run.yaml").write_text(config.replace("mytask.", f"{module}."))
        with pytest.raises(SystemExit) as ending:
            main(["fit", "--config", "conf/run.yaml"], run=False)
        error = capsys.readouterr().err
        assert ending.value.code == 2 and error.count("\n") == 1
        return error

    return fit


def test_a_task_that_does_not_implement_the_protocol(refused):
    place = "error: data.init_args.task.class_path (conf/run.yaml, line 16): "
    message = refused("task_a", "def corpus", "def corpses")
    assert message == f"{place}task_a.MyTask is not a TextEnvironment: it has no method `corpus`\n"
    message = refused("task_b", "def begin(self, case: Case)", "def begin(self)")
    reason = "its method `begin` has parameters (self), but needs (self, case)"
    assert f"task_b.MyTask is not a TextEnvironment: {reason}" in message
    message = refused("task_c", "def cases(self, split: Split) -> Sequence[Case]", "def cases(self, split)")
    assert message.endswith("data_modules.text.environment: def cases(self, split: Split) -> Sequence[Case]\n")
    message = refused("task_d", "    turns = 1", "    rounds = 1")
    assert message.endswith("(conf/run.yaml, line 16): MyTask is not a TextEnvironment: it has no attribute `turns`\n")
