"""The mazes of LMRL-Gym (https://arxiv.org/abs/2311.18232): a way to a goal, described in words, fully or partly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_modules.judgements.schema import PromptText
from data_modules.lmrl.score import Anchors
from data_modules.text.environment import Case, Dialogue, Outcome, Split
from lightning_nlf.numbers import Seed

Cell = tuple[int, int]  # row, column

GRID = (
    "1111111111111",
    "1000001000001",
    "1110111110111",
    "1110111110111",
    "1110111110111",
    "1110000000111",
    "1111110111111",
    "1111110111111",
    "1111110111111",
    "1111111111111",
)
FREE = frozenset((r, c) for r, line in enumerate(GRID) for c, x in enumerate(line) if x == "0")
GOAL: Cell = (8, 6)
STARTS = tuple(sorted(FREE - {GOAL}))
MOVES: dict[str, Cell] = {"move left": (0, -1), "move right": (0, 1), "move up": (-1, 0), "move down": (1, 0)}
WALLS: dict[str, Cell] = {  # in the order in which they are named
    "to your right": (0, 1),
    "to your left": (0, -1),
    "above you": (-1, 0),
    "below you": (1, 0),
}
LIMIT = 100  # moves; whatever is said then ends in failure
STEP, ILLEGAL = -1.0, -4.0
TRAJECTORIES = 1240  # in the demonstrations
SOLVED_SHARE = 0.15  # of the moves in the demonstrations, towards the goal; the others are drawn at random
HELD_OUT = 10  # one trajectory in so many


def moved(cell: Cell, move: str) -> Cell:
    """Where a legal move leads; a wall stops it."""
    step = MOVES[move]
    there = cell[0] + step[0], cell[1] + step[1]
    return there if there in FREE else cell


def distances() -> dict[Cell, int]:
    """Moves from each free cell to the goal, by breadth-first search."""
    known, queue = {GOAL: 0}, deque([GOAL])
    while queue:
        cell = queue.popleft()
        for move in MOVES:  # every move can be undone
            if (there := moved(cell, move)) not in known:
                known[there] = known[cell] + 1
                queue.append(there)
    return known


DISTANCE = distances()
# the moves that come closer to the goal; none there
BEST = {cell: [move for move in MOVES if DISTANCE[moved(cell, move)] < DISTANCE[cell]] for cell in FREE}


def walls(cell: Cell) -> str:
    """`There are walls to your left, below you.`"""
    found = [where for where, step in WALLS.items() if (cell[0] + step[0], cell[1] + step[1]) not in FREE]
    if not found:
        return "There are no walls near you."
    return f"There is a wall {found[0]}." if len(found) == 1 else f"There are walls {', '.join(found)}."


def place(cell: Cell) -> str:
    """`1, 1 0`: numbers are spelled digit by digit."""
    return ", ".join(" ".join(str(x)) for x in cell)


def region(cell: Cell) -> int:
    """Of three: the stem with the goal, the T on its left, the T on its right."""
    return 0 if cell[1] == GOAL[1] else 1 if cell[1] < GOAL[1] else 2


@dataclass
class Walk:
    """One episode. A wrong word costs a move and more, and leaves one where one is."""

    maze: Maze
    cell: Cell
    moves: int = 0

    def reply(self, text: str, finished: bool) -> Outcome:
        self.moves += 1
        if self.moves > LIMIT:
            return Outcome(STEP, {"steps": STEP}, "Failure\n")
        move = text.removesuffix("\n")
        if move not in MOVES:
            return Outcome(ILLEGAL, {"illegal": ILLEGAL}, self.maze.observation(self.cell), done=False)
        self.cell = moved(self.cell, move)
        if self.cell == GOAL:
            return Outcome(0.0, {"steps": 0.0}, "Success\n")
        return Outcome(STEP, {"steps": STEP}, self.maze.observation(self.cell), done=False)


@dataclass(frozen=True)
class Maze:
    """−1 a move until the goal is reached, from each of the 25 other cells; all splits hold the same 25.

    Args:
        observed: whether one is told where one is and where the goal is. The last words then say all (`window: 1`).
            Else only the walls beside one are named, and one has to remember: 20 turns in the paper (`window: 20`).
        seed: of the demonstrations, which are walks within one of three regions, 15 % of the moves towards the goal and
            the rest at random, until they leave the region, reach the goal, or after 100 moves. They are made anew
            after the paper's words: 25 ± 28 moves long and 20 % at the goal, where its own were 20 ± 25 and 11 %.
            Partly observed they do not remember either: a prompt is the last observation alone.
    """

    observed: bool = True
    seed: Seed = 0

    turns = LIMIT + 1

    @property
    def anchors(self) -> Anchors:
        """The paper's. A move drawn at random gives −85.9; the best is −6.84, partly observed too about −7.24."""
        return Anchors(least=-101.0, middle=-83.0, most=-6.84 if self.observed else -25.75)

    def observation(self, cell: Cell) -> str:
        if not self.observed:
            return walls(cell) + "\n"
        here = f"The goal is at position {place(GOAL)}. Your current position is at position {place(cell)}."
        return f"{here} {walls(cell)}\n"

    def cases(self, split: Split) -> Sequence[Case]:
        return [
            Case(f"{split}-{row}-{column}", self.observation((row, column)), {"start": (row, column)})
            for row, column in STARTS
        ]

    def begin(self, case: Case) -> Dialogue:
        return Walk(self, case.facts["start"])

    def corpus(self) -> Iterator[str]:
        yield from (self.observation(cell) for cell in sorted(FREE))
        yield from MOVES
        yield from ("Success\n", "Failure\n")

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        """One in ten trajectories is for `val`; there are none for `test`."""
        chosen = [walk for number, walk in enumerate(self.walks) if split == ("train" if number % HELD_OUT else "val")]
        return [(self.observation(cell), move) for walk in chosen for cell, move in walk]

    @cached_property
    def walks(self) -> list[list[tuple[Cell, str]]]:
        """The demonstrations' cells and moves."""
        rng = np.random.default_rng(self.seed)
        return [self._walk(rng) for _ in range(TRAJECTORIES)]

    def _walk(self, rng: np.random.Generator) -> list[tuple[Cell, str]]:
        within = int(rng.integers(3))
        starts = [cell for cell in STARTS if region(cell) == within]
        cell, walk = starts[rng.integers(len(starts))], list[tuple[Cell, str]]()
        while cell != GOAL and region(cell) == within and len(walk) < LIMIT:
            moves = BEST[cell] if rng.random() < SOLVED_SHARE else list(MOVES)
            move = moves[rng.integers(len(moves))]
            walk.append((cell, move))
            cell = moved(cell, move)
        return walk

    def expected(self, case: Case) -> str | None:
        """A first move towards the goal."""
        return BEST[case.facts["start"]][0]

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """What is wrong with a first move."""
        best = BEST[case.facts["start"]]
        if reply in best:
            return None
        closer = f"{best[0]} would have come closer."
        return closer[0].upper() + closer[1:] if reply in MOVES else f"That is no move. {closer.capitalize()}"
