"""Win rates from comparisons by several sources, worked by hand."""

import json

import pytest

from data_modules.feedback.__main__ import main
from data_modules.feedback.compare import second_preferred, wins
from data_modules.judgements.schema import Judgement

NAMED = {"replies_of": ["start", "policy"]}


def compared(number, **feedback):
    return Judgement(f"say {number}", ("a", "b"), meta=NAMED, **feedback)


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"ranking": "B > A"}, 1.0),
        ({"ranking": "A = B"}, 0.5),
        ({"ranking": "A > B"}, 0.0),
        ({"preference": 0.25}, 0.75),  # P(A is better)
        ({"preference": 0.25, "ranking": "A > B"}, 0.75),
        ({"score": (0.5, 0.75)}, 1.0),
        ({"score": (0.5, 0.5)}, 0.5),
        ({"score": (0.5, None)}, None),
        ({}, None),
    ],
)
def test_what_is_said_of_two_replies(fields, expected):
    assert second_preferred(compared(1, **fields)) == expected


def test_a_pair_counts_once_however_many_compared_it():
    """Ana gives two wins, Ben a loss of the first pair: means ½ and 1, so 1.5 of 2. Wilson interval with z = 1.96,
    n = 2, p = .75: centre (.75 + .9604)/(1 + 1.9207) = .5856, half width .6711 · √(.1875/2 + 3.8415/16) = .3878.
    """
    lines = [compared(1, ranking="B > A", source="ana"), compared(2, ranking="B > A", source="ana")]
    lines.append(compared(1, ranking="A > B", source="ben"))
    together, ana, ben = wins(lines)
    assert together == (
        "policy against start: win rate 0.75 (a tie counts half), 95 % interval 0.198 to 0.973, over 2 pairs"
    )
    assert ana.startswith("  by ana: win rate 1 (") and ben.startswith("  by ben: win rate 0 (")


def test_nobody_is_named_of_other_lines():
    unnamed = [Judgement("say", ("a", "b"), ranking="A > B"), compared(1), Judgement("say", ("a",), score=(1.0,))]
    assert wins(unnamed) == []
    assert wins([Judgement("say", ("a", "b"), ranking="A > B", meta={"replies_of": [1, 2]})]) == []


def test_the_command_says_what_is_missing(tmp_path, capsys):
    path = tmp_path / "changed.jsonl"
    line = {"prompt": "say", "responses": ["a", "b"], "meta": NAMED}
    path.write_text(json.dumps(line) + "\n")
    assert main(["compare", str(path)]) == 2
    assert "have changed.jsonl compared first, with ask and pull, or with judge" in capsys.readouterr().err
    path.write_text(json.dumps(line | {"preference": 0.1}) + "\n")
    assert main(["compare", str(path)]) == 0
    assert "policy against start: win rate 1 (" in capsys.readouterr().out
