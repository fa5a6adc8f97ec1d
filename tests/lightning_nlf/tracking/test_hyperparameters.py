from argparse import Namespace
from dataclasses import dataclass

from lightning_nlf.tracking.hyperparameters import cut, flatten


@dataclass
class Settings:
    lr: float = 0.5


def test_every_nesting_becomes_one_level():
    params = {"a": {"b": Namespace(c=1)}, "d": Settings(), "e": [1, 2], "f": [{"g": None}, {"g": True}], 3: "x"}
    flat = {"a/b/c": "1", "d/lr": "0.5", "e": "[1, 2]", "f/0/g": "None", "f/1/g": "True", "3": "x"}
    assert flatten(params) == flat


def test_parameters_of_one_name_stay_apart():
    flat = flatten({"a": {"b": 1}, "a/b": 2, "c": {1: 3, "1": 4}})
    assert sorted(flat.values()) == ["1", "2", "3", "4"]
    assert flat["a/b"] == "1" and flat["c/1"] == "4"


def test_nothing_stays_nothing():
    assert flatten({}) == {} and flatten(Namespace()) == {}


def test_cut_keeps_the_length():
    assert cut("abcd", 4) == "abcd"
    assert cut("abcde", 4) == "abc…"
