"""Mazes of LMRL-Gym (https://arxiv.org/abs/2311.18232): find a goal by text, fully or partially observed."""

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
WALLS: dict[str, Cell] = {  # in the order of the observation's text
    "to your right": (0, 1),
    "to your left": (0, -1),
    "above you": (-1, 0),
    "below you": (1, 0),
}
LIMIT = 100  # maximum number of moves; the next reply ends the episode as a failure
STEP, ILLEGAL = -1.0, -4.0
TRAJECTORIES = 1240  # number of demonstrated trajectories
SOLVED_SHARE = 0.15  # share of demonstrated moves towards the goal; the other moves are random
HELD_OUT = 10  # every tenth trajectory is held out


def moved(cell: Cell, move: str) -> Cell:
    """The cell after a legal move. A wall blocks the move."""
    step = MOVES[move]
    target = cell[0] + step[0], cell[1] + step[1]
    return target if target in FREE else cell


def distances() -> dict[Cell, int]:
    """Number of moves from each free cell to the goal, by breadth-first search."""
    steps, queue = {GOAL: 0}, deque([GOAL])
    while queue:
        cell = queue.popleft()
        for move in MOVES:  # every move can be undone
            if (neighbour := moved(cell, move)) not in steps:
                steps[neighbour] = steps[cell] + 1
                queue.append(neighbour)
    return steps


DISTANCE = distances()
# cell → the moves that lead closer to the goal; none at the goal
BEST = {cell: [move for move in MOVES if DISTANCE[moved(cell, move)] < DISTANCE[cell]] for cell in FREE}


def walls(cell: Cell) -> str:
    """The walls around a cell as text: `There are walls to your left, below you.`"""
    sides = [where for where, step in WALLS.items() if (cell[0] + step[0], cell[1] + step[1]) not in FREE]
    if not sides:
        return "There are no walls near you."
    return f"There is a wall {sides[0]}." if len(sides) == 1 else f"There are walls {', '.join(sides)}."


def place(cell: Cell) -> str:
    """A position as text, digit by digit: `1, 1 0`."""
    return ", ".join(" ".join(str(x)) for x in cell)


def region(cell: Cell) -> int:
    """The region of a cell: 0 is the stem of the T with the goal, 1 the left arm, 2 the right arm."""
    return 0 if cell[1] == GOAL[1] else 1 if cell[1] < GOAL[1] else 2


@dataclass
class Walk:
    """One episode in the maze. A reply that is not a move costs 4, and does not change the position."""

    maze: Maze
    cell: Cell
    moves: int = 0

    def reply(self, text: str, finished: bool) -> Outcome:
        self.moves += 1
        if self.moves > LIMIT:
            return Outcome(STEP, {"steps": STEP}, "Failure\n")
        move = text.removesuffix("\n")
        if move not in MOVES:
            return Outcome(ILLEGAL, {"illegal": ILLEGAL}, self.maze.observation(self.cell), over=False)
        self.cell = moved(self.cell, move)
        if self.cell == GOAL:
            return Outcome(0.0, {"steps": 0.0}, "Success\n")
        return Outcome(STEP, {"steps": STEP}, self.maze.observation(self.cell), over=False)


@dataclass(frozen=True)
class Maze:
    """Reach the goal from one of the 25 other cells, with reward −1 per move; every split has the same 25 prompts.

    Args:
        observed: whether the environment's text has the position and the goal, so that the last text is all that the
            policy needs (`window: 1`). If not, the text has only the walls around the position, so the policy needs
            memory; the paper gives the policy the last 20 turns (`window: 20`).
        seed: seed for generating the demonstrations. A demonstration is a random walk within one of three regions, with
            15 % of the moves towards the goal. It ends when it leaves the region, reaches the goal, or has 100 moves.
            The walks follow the paper's description: they are 25 ± 28 moves long, and 20 % reach the goal. The paper's
            own data has 20 ± 25 moves and 11 %. Even if `observed` is False, the prompt of a demonstration is only the
            last observation.
    """

    observed: bool = True
    seed: Seed = 0

    turns = LIMIT + 1

    @property
    def anchors(self) -> Anchors:
        """The paper's anchors. Random moves return −85.9; the best policy −6.84, or −7.24 if partially observed."""
        return Anchors(least=-101.0, middle=-83.0, best=-6.84 if self.observed else -25.75)

    def observation(self, cell: Cell) -> str:
        if not self.observed:
            return walls(cell) + "\n"
        position = f"The goal is at position {place(GOAL)}. Your current position is at position {place(cell)}."
        return f"{position} {walls(cell)}\n"

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
        """Prompts with moves. Every tenth trajectory is in `val`, all others are in `train`; `test` has none."""
        chosen = [walk for number, walk in enumerate(self.walks) if split == ("train" if number % HELD_OUT else "val")]
        return [(self.observation(cell), move) for walk in chosen for cell, move in walk]

    @cached_property
    def walks(self) -> list[list[tuple[Cell, str]]]:
        """The demonstrated trajectories, as lists of (cell, move)."""
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
        """A first move that leads towards the goal."""
        return BEST[case.facts["start"]][0]

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """A critique of the first move; None if it leads closer to the goal."""
        best = BEST[case.facts["start"]]
        if reply in best:
            return None
        closer = f"{best[0]} would have come closer."
        return closer[0].upper() + closer[1:] if reply in MOVES else f"That is no move. {closer.capitalize()}"
