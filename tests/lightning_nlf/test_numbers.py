"""Every number that a yaml can set has a range."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

import data_modules
import lightning_nlf
from lightning_nlf import numbers

PACKAGES = ["lightning_nlf.callbacks", "lightning_nlf.networks", "lightning_nlf.objectives", "lightning_nlf.tracking"]
NAMES = ["functional", "modules", "reward_module", "scorers", "experts"]
# Without a range on purpose: subclasses pass them, and have the range in their signatures.
BARE = {"TieObjective.start", "TiedDPOObjective.start", "ValueHead.width", "QHead.width", "QHead.vocabulary"}
BARE |= {"HuggingFace.dropout"}


def public_classes():
    """The public classes of both packages."""
    for package in (lightning_nlf, data_modules):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            is_public = info.name.startswith((*PACKAGES, "data_modules.")) or info.name.split(".")[-1] in NAMES
            if is_public and not info.name.endswith("__main__"):
                module = importlib.import_module(info.name)
                for name, cls in vars(module).items():
                    if inspect.isclass(cls) and cls.__module__ == info.name and not name.startswith("_"):
                        yield cls


RECORDS = {"Position"}  # a record of tracking, which no yaml names


def import_of(part: str):
    return importlib.import_module(f"lightning_nlf.{part}")


def named_in_conf() -> set[str]:
    text = "".join(path.read_text() for path in (Path(__file__).parents[2] / "conf").rglob("*.yaml"))
    return {name.rpartition(".")[2] for name in re.findall(r"class_path: ([\w.]+)", text)}


def test_every_number_of_a_class_that_a_yaml_names_has_a_range():
    bare = []
    exporting = ("networks", "objectives", "callbacks", "tracking")
    class_names = named_in_conf() | {name for part in exporting for name in vars(import_of(part))} - RECORDS
    for cls in public_classes():
        if cls.__name__ not in class_names:
            continue
        for base in cls.__mro__:
            if base.__module__.split(".")[0] in ("lightning_nlf", "data_modules") and "__init__" in vars(base):
                for parameter in inspect.signature(base.__init__).parameters.values():
                    if re.search(r"\b(int|float)\b", str(parameter.annotation)):
                        bare.append(f"{base.__name__}.{parameter.name}")
    assert set(bare) <= BARE and len(class_names) > 50


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("Discount", [0, 1.0, "0.9"], [-1, 1.5, 1e308, float("nan"), True, None, "1:30"]),
        ("NonNegative", [0, 3, 1e9], [-0.5, float("inf"), 10**400]),
        ("Positive", [5e-324, 2], [0, -1, float("nan")]),
        ("PositiveShare", [1], [0, 1.1]),
        ("BelowOne", [0, 0.999], [1, -0.1]),
        ("Number", [-3, 1e300], [float("inf"), False]),
        ("Size", [1, 2**31 - 1, "1_000"], [0, -1, 10**30, 2.0, "1:30", True]),
        ("Count", [0], [-1]),
        ("Seed", [0, 2**32 - 1], [-1, 2**32]),
    ],
)
def test_a_range_takes_what_is_in_it_as_a_plain_number(kind, good, bad):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=getattr(numbers, kind))
    for value in good:
        read = parser.parse_object({"x": value}).x
        assert type(read) in (int, float) and read == float(value)
    for value in bad:
        if value is not None:  # here None means that the argument is missing
            with pytest.raises(Exception, match="Expected a"):
                parser.parse_object({"x": value})
