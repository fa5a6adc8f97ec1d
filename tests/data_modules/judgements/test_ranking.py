"""Rankings with ties: from text to ranks and back, and from scores."""

import random

import pytest

from data_modules.judgements.ranking import format_ranking, letter, parse_ranking, ranks_of_scores


def test_letters_go_on_behind_z():
    assert [letter(i) for i in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


@pytest.mark.parametrize(
    ("text", "ranks"),
    [("B > C = D > A", (2, 0, 1, 1)), ("A", (0,)), (" B>A ", (1, 0)), ("A=B=C", (0, 0, 0)), ("C > B > A", (2, 1, 0))],
)
def test_an_order_is_read(text, ranks):
    assert parse_ranking(text, len(ranks)) == ranks


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("A > C", "names 'C', but the responses are A to B"),
        ("A > b", "names 'b', but the responses are A to B"),
        ("A > B > A", "names A twice"),
        ("A = A > B", "names A twice"),
        ("B", "leaves out A"),
        ("A > > B", "nothing on one side"),
        ("A > B >", "nothing on one side"),
        ("", "nothing on one side"),
        ("A B", "names 'A B'"),
    ],
)
def test_what_is_no_order_is_refused(text, fault):
    with pytest.raises(ValueError, match=fault):
        parse_ranking(text, 2)


def test_a_lone_response_is_named():
    with pytest.raises(ValueError, match="the responses end at A"):
        parse_ranking("B", 1)


def test_round_trip():
    chance = random.Random(0)
    for _ in range(200):
        raw = [chance.randrange(5) for _ in range(chance.randint(1, 30))]
        dense = sorted(set(raw))
        ranks = tuple(dense.index(rank) for rank in raw)
        assert parse_ranking(format_ranking(ranks), len(ranks)) == ranks
        assert format_ranking(raw) == format_ranking(ranks)


@pytest.mark.parametrize(
    ("scores", "ties", "ranks"),
    [
        ((0.1, 0.9, 0.5), 0.0, (2, 0, 1)),
        ((0.5, 0.5, 0.1), 0.0, (0, 0, 1)),
        ((0.3, 0.25, 0.2), 0.05, (0, 0, 1)),  # .2 is .1 below the best of the group, but .05 below its neighbour
        ((0.2, 0.25, 0.3), 0.05, (1, 0, 0)),
        ((0.3, 0.25, 0.2), 0.04, (0, 1, 2)),
        ((0.3, 0.25, 0.2), 1.0, (0, 0, 0)),
        ((-2.0, -1.0), 0.0, (1, 0)),
    ],
)
def test_scores_give_an_order(scores, ties, ranks):
    assert ranks_of_scores(scores, ties) == ranks


def test_negative_tolerance_is_refused():
    with pytest.raises(ValueError, match="ties: got -0.1"):
        ranks_of_scores([1.0], -0.1)
