"""`versus`: pairs of replies from two policies, and win rates."""

from dataclasses import replace

import pytest

from data_modules.feedback import read, write
from data_modules.feedback.__main__ import main
from data_modules.feedback.people.items import items
from data_modules.feedback.versus import versus
from data_modules.judgements.schema import Judgement
from data_modules.judgements.win_rate import win_rate

FIRST = [Judgement("say a", ("a", "aa"), id="1"), Judgement("say b", ("b",)), Judgement("say c", ("c",), id="3")]
SECOND = [Judgement("say b", ("y",)), Judgement("say a", ("x",), score=(0.5,), id="1"), Judgement("d", expected="d")]


def test_pairs_are_of_the_same_prompt_by_id_or_text_and_nothing_is_said_of_them():
    pairs = versus(FIRST, SECOND)
    ended = {"finished": [True, True]}
    assert pairs == [Judgement("say a", ("a", "x"), id="1", meta=ended), Judgement("say b", ("b", "y"), meta=ended)]


def test_who_compares_them_sees_which_was_cut_off():
    cut = [Judgement("say a", ("a", "aa"), meta={"finished": [False, True], "tokens": [[1], [1, 1]]}, id="1")]
    assert versus(cut, SECOND)[0].meta == {"finished": [False, True]}
    (item,) = items(versus(cut, SECOND))
    assert item.response == "**A**\n\na …\n\n---\n\n**B**\n\nx"


def test_a_win_rate_and_its_interval():
    """Two wins, a tie and a loss: 2.5 of 4. Wilson interval with z = 1.96, n = 4, p = .625: centre (.625 + .4802)/
    (1 + .9604) = .5638, half width .9998 · √(.234375/4 + 3.8415/64) = .3443, so [.2195, .9081].
    """
    assert win_rate([0.9, 0.5, 0.2, 0.6]) == pytest.approx((0.625, 0.2195, 0.9081), abs=1e-4)
    assert win_rate([0.1])[0] == 0


def test_the_command_pairs_files_and_check_tells_who_wins(tmp_path, capsys):
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "pairs.jsonl")]
    scored = [replace(line, score=(7.0,)) for line in SECOND[:1]]  # any scale is accepted
    for name, lines in zip(names[:2], (FIRST, scored + SECOND[1:]), strict=True):
        write(name, lines)
    assert main(["versus", *names[:2], "--out", names[2]]) == 0
    assert "2 pairs" in (output := capsys.readouterr().out) and "1 prompts" in output
    preferred = [
        Judgement(pair.prompt, pair.responses, preference=p, id=pair.id)
        for pair, p in zip(read(names[2]), (0.9, 0.2), strict=True)
    ]
    write(names[2], preferred)
    assert main(["check", names[2]]) == 0
    assert "A beats B in 0.5 of them" in capsys.readouterr().out


def test_files_of_other_prompts_are_refused():
    with pytest.raises(ValueError, match="no prompt in common"):
        versus(FIRST, [Judgement("say z", ("z",))])
