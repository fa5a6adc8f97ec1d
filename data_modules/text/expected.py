"""What the teacher would have said: to how many prompts, and in which rows it is learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from data_modules.ranges import at_least, shares
from data_modules.text.environment import Case, Split, TextEnvironment
from data_modules.text.episode import Episode, Prompt, Turn
from data_modules.text.rows import EXPERT, Segment
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Batch, TextExpert
from lightning_nlf.numbers import Count, Seed, Share, Size


def with_expected(task: TextEnvironment, prompts: int | None, order: int) -> list[tuple[Case, str]]:
    """Training prompts that have an expected response, and it.

    Args:
        prompts: how many, of all there are the first in a random order, so that 32 of them are among 128; None = all.
        order: the seed of that order.
    Raises:
        ValueError: the task has not so many, or none.
    """
    known = all_expected(task, "train")
    asked = len(known) if prompts is None else prompts
    if not 1 <= asked <= len(known):
        raise ValueError(f"prompts: {prompts or 1} expected responses are asked for, and the task has {len(known)}")
    return [known[i] for i in np.random.default_rng(order).permutation(len(known))[:asked]]


def all_expected(task: TextEnvironment, split: Split) -> list[tuple[Case, str]]:
    return [(case, text) for case in task.cases(split) if (text := task.expected(case)) is not None]


@dataclass(frozen=True)
class Response:
    """An expected response as a row; `number` is its place among all there are."""

    number: int
    row: list[Segment]
    episode: Episode  # the same as if it had been said in a dialogue


@dataclass(frozen=True)
class Shown:
    """A response in a collection: in the group of its prompt (`joins`), or in one of its own."""

    response: Response
    group: int
    joins: bool


@dataclass
class ExpectedResponses:
    """The teacher's own answers to training prompts: rows in which an expert speaks from the first token on.

    Args:
        prompts: training prompts that have one; 32 of them are among 128. None = all that the task has one for.
        order: a seed; it alone decides which prompts these are, in this run and in any other.
        share: part of a collection's prompts whose response, where there is one, joins the group: paid by the rule,
            `valid`, and nobody's but imitation's, or an injection's that learns from whole expected responses.
        rows: responses that every collection draws from all there are, over all ranks, whatever its prompts are. They
            are imitated, and nothing else.
        as_if: whose log-probabilities of a joined response stand for the teacher's, which are not known: by default
            +∞, of one who is certain. For the importance weights of an injection.

    Raises:
        ValueError: a knob out of range.
    """

    prompts: Size | None = None
    order: Seed = 0
    share: Share = 1.0
    rows: Count = 0
    as_if: TextExpert | None = None
    known: dict[str, Response] = field(default_factory=dict, init=False, repr=False)  # by the prompt's id
    asked: Tensor = field(default_factory=lambda: torch.zeros(0), init=False, repr=False)  # (responses,) bool

    def __post_init__(self) -> None:
        at_least(1, **{"expected.prompts": self.prompts})
        shares(**{"expected.share": self.share})
        at_least(0, **{"expected.rows": self.rows})
        if not self.share and not self.rows:
            raise ValueError("expected.share: nothing is learned from expected responses; give a share, or rows")

    def load(self, task: TextEnvironment, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError: there are not so many."""
        of_id = {prompt.case.id: prompt for prompt in prompts}
        for number, (case, text) in enumerate(with_expected(task, self.prompts, self.order)):
            reply = [*tokenizer.encode_reply(text), tokenizer.eos]
            outcome, prompt = task.begin(case).reply(text, True), of_id[case.id]
            row = [Segment(prompt.ids), Segment(reply, EXPERT, None, outcome.reward)]
            self.known[case.id] = Response(number, row, Episode(prompt, [Turn(reply, [], True, text, outcome)]))
        if self.rows > len(self.known):
            raise ValueError(f"expected.rows: got {self.rows}, and there are {len(self.known)} expected responses")
        self.asked = torch.zeros(len(self.known), dtype=torch.bool)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and response."""
        return max(sum(len(segment.ids) for segment in each.row) for each in self.known.values())

    def shown(self, prompts: Sequence[Prompt], rows: int, rng: np.random.Generator) -> list[Shown]:
        """Those of a rank's collection: in the groups of its prompts, and `rows` more."""
        first = [prompt.case.id for prompt in prompts[: round(self.share * len(prompts))]]
        joined = [Shown(self.known[name], place, True) for place, name in enumerate(first) if name in self.known]
        every = list(self.known.values())
        drawn = rng.permutation(len(every))[:rows]
        return joined + [Shown(every[i], len(prompts) + place, False) for place, i in enumerate(drawn)]

    def judged(self, episodes: list[Episode], shown: Sequence[Shown], of: Tensor) -> tuple[list[Episode], Tensor]:
        """What somebody may be asked to pay for: the episodes and the responses that join a group.

        Args: of: (B,) the episode of each row, −1 of the rows of those `shown`, in their order.
        Returns: all of these as episodes; `of` with the places of the responses, −1 of those that do not join.
        """
        joins = torch.tensor([each.joins for each in shown], dtype=torch.bool)
        place = torch.where(joins, len(episodes) + joins.cumsum(0) - 1, -1)
        joined = [each.response.episode for each in shown if each.joins]
        return [*episodes, *joined], of.masked_scatter(of < 0, place)

    def settled(self, batch: Batch, shown: Sequence[Shown], rows: Tensor) -> Batch:
        """What does not join a group is a label and nothing else.

        Args: rows: (B,) bool, those of the batch that are the ones `shown`, in their order.
        """
        stays = torch.ones(len(batch), 1, dtype=torch.bool)
        stays[rows, 0] = torch.tensor([each.joins for each in shown], dtype=torch.bool)
        rewards = None if batch.rewards is None else torch.where(stays, batch.rewards, 0)
        return replace(batch, valid=batch.valid & stays, rewards=rewards)

    def new(self, shown: Sequence[Shown], sum_over_ranks: Callable[[Tensor], Tensor]) -> tuple[list[int], int, int]:
        """What the teacher was not asked for before: it is asked once for each, however often that is learned from.

        Returns: the places in `shown` of the new ones, each once; how many are new on all ranks, and their tokens.
        """
        now = torch.zeros(len(self.asked))
        now[[each.response.number for each in shown]] = 1
        fresh = (sum_over_ranks(now) > 0) & ~self.asked
        self.asked = self.asked | fresh
        places = {each.response.number: place for place, each in enumerate(shown) if fresh[each.response.number]}
        tokens = sum(len(each.row[-1].ids) for each in self.known.values() if fresh[each.number])
        return list(places.values()), int(fresh.sum()), tokens

    # ---- checkpoint

    def state_dict(self) -> dict[str, Tensor]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.asked = state["asked"]
