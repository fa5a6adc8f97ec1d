"""The maze's observations, rewards and limits, and its anchors by enumeration."""

import pytest

from data_modules.lmrl import Anchors, Maze
from data_modules.lmrl.maze import BEST, DISTANCE, FREE, GOAL, LIMIT, MOVES, STARTS, moved, region


def test_the_texts_of_the_paper():
    maze, blind = Maze(), Maze(observed=False)
    goal = "The goal is at position 8, 6. Your current position is at position "
    assert maze.observation((1, 1)) == goal + "1, 1. There are walls to your left, above you, below you.\n"
    assert maze.observation((1, 10)) == goal + "1, 1 0. There are walls above you, below you.\n"
    assert maze.observation((5, 6)) == goal + "5, 6. There is a wall above you.\n"
    assert blind.observation((6, 6)) == "There are walls to your right, to your left.\n"
    assert blind.observation((1, 5)) == "There are walls to your right, above you, below you.\n"
    assert len(FREE) == 26 and len(STARTS) == 25


def test_a_move_costs_one_a_wrong_word_four_and_the_goal_nothing():
    """(6, 6) is two above the goal: into the wall, a reply that is not a move, down, down."""
    maze = Maze()
    (case,) = [case for case in maze.cases("val") if case.facts["start"] == (6, 6)]
    walk = maze.begin(case)
    outcomes = [walk.reply(text, True) for text in ("move left", "go home", "move down\n", "move down")]
    assert [outcome.reward for outcome in outcomes] == [-1, -4, -1, 0]
    assert [outcome.over for outcome in outcomes] == [False, False, False, True]
    assert outcomes[0].text == outcomes[1].text == case.prompt and outcomes[3].text == "Success\n"
    assert "position 7, 6." in outcomes[2].text
    assert all(sum(outcome.parts.values()) == outcome.reward for outcome in outcomes)


def test_the_hundred_and_first_word_is_failure():
    maze = Maze()
    walk = maze.begin(maze.cases("val")[0])
    outcomes = [walk.reply("move left", True) for _ in range(maze.turns)]
    assert sum(outcome.reward for outcome in outcomes) == -101
    assert [outcome.over for outcome in outcomes] == [False] * 100 + [True] and outcomes[-1].text == "Failure\n"


def test_the_best_way_from_every_start_earns_the_highest_anchor():
    """−(d − 1) from a start d moves away; the mean over the 25 is −171/25 = −6.84."""
    maze, total = Maze(), 0.0
    for case in maze.cases("val"):
        walk, cell, earned, over = maze.begin(case), case.facts["start"], 0.0, False
        while not over:
            move = BEST[cell][0]
            cell, outcome = moved(cell, move), walk.reply(move, True)
            earned, over = earned + outcome.reward, outcome.over
        assert earned == 1 - DISTANCE[case.facts["start"]]
        total += earned
    assert total == -171 and maze.anchors.best == total / 25


@pytest.mark.parametrize(("best", "expected"), [(0.0, -85.9), (0.05, -76.2), (0.1, -64.1), (0.15, -51.8), (0.3, -27.1)])
def test_what_a_mixture_of_random_and_best_moves_earns(best, expected):
    """Backward induction over the 101 replies: with probability `best` the best move, else one of four at random."""
    value = dict.fromkeys(FREE, -1.0)  # of the last reply, which always fails
    value[GOAL] = 0.0
    for _ in range(LIMIT):
        worth = {cell: 0.0 if cell == GOAL else value[cell] - 1 for cell in FREE}
        following = {GOAL: 0.0}
        for cell in STARTS:
            random_move = sum(worth[moved(cell, move)] for move in MOVES) / 4
            following[cell] = best * worth[moved(cell, BEST[cell][0])] + (1 - best) * random_move
        value = following
    assert sum(value[cell] for cell in STARTS) / 25 == pytest.approx(expected, abs=0.05)


def test_scores_between_the_anchors():
    """−101 is 0, −92 is 25, −83 is 50, −44.92 is 75, −6.84 is 100; nothing is below 0."""
    anchors = Maze().anchors
    assert [anchors.score(x) for x in (-110, -101, -92, -83)] == [0, 0, 25, 50]
    assert anchors.score(-44.92) == pytest.approx(75) and anchors.score(-6.84) == 100
    assert Anchors(0, 1, 2).score(3) == 150


def test_demonstrations_stay_in_one_region_and_are_mostly_random():
    """With one best move of four, a move is the best one with probability .15 + .85/4 = .3625."""
    maze = Maze()
    assert len({region(cell) for cell in FREE}) == 3
    sizes = [sum(region(cell) == i for cell in FREE) for i in range(3)]
    assert sizes == [4, 11, 11]
    for walk in maze.walks:
        assert len({region(cell) for cell, _ in walk}) == 1 and len(walk) <= LIMIT
        assert all(moved(*first) == second[0] for first, second in zip(walk, walk[1:], strict=False))
    pairs = [pair for walk in maze.walks for pair in walk]
    share = sum(move in BEST[cell] for cell, move in pairs) / len(pairs)
    assert share == pytest.approx(0.3625, abs=0.01)
    train, val = maze.demonstrations("train"), maze.demonstrations("val")
    assert len(train) + len(val) == len(pairs) and 0.05 < len(val) / len(pairs) < 0.15
    lengths = [len(walk) for walk in maze.walks]
    assert sum(lengths) / len(lengths) == pytest.approx(25.4, abs=2)
    assert Maze().demonstrations("train") == train != Maze(seed=1).demonstrations("train")


def test_every_word_is_in_the_corpus_and_critiques_name_the_way():
    for maze in (Maze(), Maze(observed=False)):
        words = {word for text in maze.corpus() for word in text.split()}
        for prompt, move in maze.demonstrations("val"):
            assert words >= set((prompt + move).split())
    case = Maze().cases("val")[0]
    assert Maze().expected(case) == "move right" and Maze().critique(case, "move right", 0) is None
    assert Maze().critique(case, "move up", 0) == "Move right would have come closer."
    assert Maze().critique(case, "jump", 0) == "That is no move. Move right would have come closer."
