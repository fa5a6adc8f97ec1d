"""Expected responses: the teacher's own replies to some prompts, as rows to learn from."""

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
    """Choose training prompts that have an expected response, and return them with the response.

    Args:
        prompts: number of prompts. They are taken from the start of a random order, so a choice of 32 prompts is part
            of a choice of 128. None = all.
        order: seed for that random order.
    Raises:
        ValueError: the task has fewer than `prompts` expected responses, or none.
    """
    pairs = all_expected(task, "train")
    count = len(pairs) if prompts is None else prompts
    if not 1 <= count <= len(pairs):
        raise ValueError(f"prompts: got {prompts or 1}, and the task has {len(pairs)} expected responses; use fewer")
    return [pairs[i] for i in np.random.default_rng(order).permutation(len(pairs))[:count]]


def all_expected(task: TextEnvironment, split: Split) -> list[tuple[Case, str]]:
    return [(case, text) for case in task.cases(split) if (text := task.expected(case)) is not None]


@dataclass(frozen=True)
class Response:
    """An expected response as an episode. `number` is the index of the response among all expected responses."""

    number: int
    row: list[Segment]
    episode: Episode  # the response as the only turn of a dialogue


@dataclass(frozen=True)
class PlacedResponse:
    """A response in a collection, either in the group of its prompt (`joins`) or as a separate group."""

    response: Response
    group: int
    joins: bool


@dataclass
class ExpectedResponses:
    """Use the teacher's replies to training prompts as rows in which an expert acts from the first token.

    Args:
        prompts: number of training prompts with an expected response. A choice of 32 prompts is part of a choice of
            128. None = all expected responses of the task.
        order: seed for choosing these prompts; nothing else changes the choice.
        share: share of a collection's prompts whose expected response, if there is one, joins the group of replies. A
            response that joins is `valid` and gets the reward of the rule. Only imitation learns from it, or an
            injection objective that uses whole expected responses.
        rows: number of additional responses that every collection draws at random, over all ranks. These need not
            belong to the collection's prompts, and are only imitated.
        as_if: a model whose log-probabilities stand in for the teacher's in joined responses, for the importance
            weights of an injection objective. The teacher's log-probabilities are unknown; by default they are set to
            +∞.

    Raises:
        ValueError: a setting is out of range.
    """

    prompts: Size | None = None
    order: Seed = 0
    share: Share = 1.0
    rows: Count = 0
    as_if: TextExpert | None = None
    responses: dict[str, Response] = field(default_factory=dict, init=False, repr=False)  # by the prompt's id
    counted: Tensor = field(default_factory=lambda: torch.zeros(0), init=False, repr=False)  # (responses,) bool

    def __post_init__(self) -> None:
        at_least(1, **{"expected.prompts": self.prompts})
        shares(**{"expected.share": self.share})
        at_least(0, **{"expected.rows": self.rows})
        if not self.share and not self.rows:
            raise ValueError("expected.share: share and rows are both 0, so nothing is learned; raise one of them")

    def load(self, task: TextEnvironment, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> None:
        """Encode the expected responses.  Raises ValueError: the task has fewer responses than `prompts` or `rows`."""
        of_id = {prompt.case.id: prompt for prompt in prompts}
        for number, (case, text) in enumerate(with_expected(task, self.prompts, self.order)):
            reply = [*tokenizer.encode_reply(text), tokenizer.eos]
            outcome, prompt = task.begin(case).reply(text, True), of_id[case.id]
            row = [Segment(prompt.ids), Segment(reply, EXPERT, None, outcome.reward)]
            self.responses[case.id] = Response(number, row, Episode(prompt, [Turn(reply, [], True, text, outcome)]))
        if self.rows > len(self.responses):
            count = len(self.responses)
            raise ValueError(f"expected.rows: got {self.rows}, must be at most {count}, as many as there are")
        self.counted = torch.zeros(len(self.responses), dtype=torch.bool)

    @property
    def longest(self) -> int:
        """Number of tokens in the longest prompt with its response."""
        return max(sum(len(segment.ids) for segment in response.row) for response in self.responses.values())

    def draw(self, prompts: Sequence[Prompt], rows: int, rng: np.random.Generator) -> list[PlacedResponse]:
        """Draw the responses for this rank's collection: those that join groups of `prompts`, and `rows` others."""
        first = [prompt.case.id for prompt in prompts[: round(self.share * len(prompts))]]
        joined = [
            PlacedResponse(self.responses[name], place, True)
            for place, name in enumerate(first)
            if name in self.responses
        ]
        every = list(self.responses.values())
        order = rng.permutation(len(every))[:rows]
        return joined + [PlacedResponse(every[i], len(prompts) + place, False) for place, i in enumerate(order)]

    def scorable(
        self, episodes: list[Episode], placed: Sequence[PlacedResponse], of: Tensor
    ) -> tuple[list[Episode], Tensor]:
        """All episodes that get a score: the policy's episodes, and the responses that join a group.

        Args: of: (B,) the episode of each row, −1 for the rows of `placed`, which are in order.
        Returns: the episodes; and `of` with the episode index of each response that joins a group, still −1 for other
            responses.
        """
        joins = torch.tensor([response.joins for response in placed], dtype=torch.bool)
        place = torch.where(joins, len(episodes) + joins.cumsum(0) - 1, -1)
        joined = [response.response.episode for response in placed if response.joins]
        return [*episodes, *joined], of.masked_scatter(of < 0, place)

    def mask_labels(self, batch: Batch, placed: Sequence[PlacedResponse], rows: Tensor) -> Batch:
        """Turn responses that join no group into pure labels, without valid steps and rewards.

        Args: rows: (B,) bool, True for the rows of `placed`, which are in order.
        """
        stays = torch.ones(len(batch), 1, dtype=torch.bool)
        stays[rows, 0] = torch.tensor([response.joins for response in placed], dtype=torch.bool)
        rewards = None if batch.rewards is None else torch.where(stays, batch.rewards, 0)
        return replace(batch, valid=batch.valid & stays, rewards=rewards)

    def new(
        self, placed: Sequence[PlacedResponse], sum_over_ranks: Callable[[Tensor], Tensor]
    ) -> tuple[list[int], int, int]:
        """Find the responses that are used for the first time, because the teacher writes each response only once.

        Returns: the index in `placed` of each new response; the number of new responses on all ranks; and the number of
            their tokens.
        """
        now = torch.zeros(len(self.counted))
        now[[response.response.number for response in placed]] = 1
        fresh = (sum_over_ranks(now) > 0) & ~self.counted
        self.counted = self.counted | fresh
        numbers = [response.response.number for response in placed]
        places = {number: place for place, number in enumerate(numbers) if fresh[number]}
        tokens = sum(len(response.row[-1].ids) for response in self.responses.values() if fresh[response.number])
        return list(places.values()), int(fresh.sum()), tokens

    # ---- checkpoint

    def state_dict(self) -> dict[str, Tensor]:
        return {"asked": self.counted}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counted = state["asked"]
