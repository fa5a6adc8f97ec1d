"""From judgements to rows of a batch: the same layout whatever is known of a reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from data_modules.feedback.replies import reply_of
from data_modules.feedback.selection import Keep, code_of
from data_modules.judgements.schema import Judgement
from data_modules.text import rows as text_rows
from data_modules.text.prompts import PromptFormat, texts_of, with_last
from data_modules.text.rows import EXPERT, LEARNER, Segment
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.wording import Wording
from lightning_nlf.batch import Batch

Use = Literal["score", "ranking", "preference", "steps", "expected", "critique", "responses"]
CRITIQUE_PROMPT = "{prompt} answer : {response} critique :"


@dataclass(frozen=True)
class Row:
    """A prompt, a reply to it, and what is known of that; None where nothing is."""

    prompt: list[int]
    reply: list[int]  # with the stop token, unless it was cut off
    finished: bool
    learns: bool  # the learner said it, and something that is used is known of it as a whole
    expert: bool  # it is imitated
    rank: int = -1
    score: float | None = None
    preference: float | None = None  # the probability that it is better than the other one of two
    critique: bool = False  # the reply is what was said of another row's
    steps: tuple[tuple[int, float], ...] = ()  # place in `reply` of the last token of a step, and the step's label


@dataclass(frozen=True)
class Layout:
    """How judgements become rows.

    Args: format: of prompts; scores: of the training replies, in ascending order; the others as of
        `FeedbackDataModule`.
    """

    format: PromptFormat
    use: tuple[Use, ...]
    scores: Sequence[float] = ()
    keep: Keep | None = None
    codes: tuple[str, ...] = ()
    context: int | None = None
    critique_prompt: str | Wording | None = None
    expected_score: float | None = None

    @property
    def asks(self) -> str | Wording:
        """What stands before a critique; by default a conversation, where prompts go through a chat template."""
        if self.critique_prompt is not None:
            return self.critique_prompt
        return CRITIQUE_PROMPT if self.format.template is None else Wording()

    def texts(self, judgement: Judgement) -> list[str]:
        """All that a model reads or says, for a tokenizer to be made from."""
        texts = [
            *texts_of(judgement.prompt),
            *judgement.responses,
            *([judgement.expected] if judgement.expected else []),
        ]
        if "critique" in self.use:
            texts += filter(None, judgement.critique or ())
            asks = self.asks
            texts += asks.texts() if isinstance(asks, Wording) else [asks.format(prompt=" ", response=" ")]
        return texts

    def rows(self, judgement: Judgement) -> list[Row]:
        """Those of one judgement, which are a group; what nothing is known of gives none.

        Raises:
            ValueError: a text that the tokenizer cannot encode, more tokens than the context; says of which line.
        """
        try:
            places = range(len(judgement.responses))
            replies = [self._reply(judgement, i) for i in places]
            expected = [self._expected(judgement)] if "expected" in self.use and judgement.expected else []
            critiques = [self._critique(judgement, i) for i in places] if "critique" in self.use else []
            found = [row for row in [*replies, *expected, *critiques] if row is not None]
            for row in found:
                self._check(row)
        except ValueError as error:
            raise ValueError(f"{judgement.where}: {error}") from None
        return found

    def _reply(self, judgement: Judgement, i: int) -> Row | None:
        score = judgement.of("score", i)
        steps = judgement.of("steps", i) if "steps" in self.use else None
        rank, preference = self._compared(judgement, i)
        expert = score is not None and self._imitated(score, judgement)
        learns = (score is not None and "score" in self.use) or rank >= 0 or "responses" in self.use
        if not learns and not expert and not steps:
            return None
        reply, places = reply_of(judgement, i, self.tokenizer, [step.end for step in steps or ()])
        return Row(
            prompt=self._prompt(judgement, score),
            reply=reply,
            finished=judgement.finished(i),
            learns=learns,
            expert=expert,
            rank=rank,
            score=score if "score" in self.use else None,
            preference=preference,
            steps=tuple((place, step.label) for place, step in zip(places, steps or (), strict=True)),
        )

    def _compared(self, judgement: Judgement, i: int) -> tuple[int, float | None]:
        """The rank of a response, −1 without one, and the probability that it is the better of two.

        Where nobody gave a ranking, the likelier winner is the first; at .5 there is a tie.
        """
        first = judgement.preference if "preference" in self.use else None
        own = first if first is None or i == 0 else 1 - first
        if "ranking" in self.use and judgement.ranks is not None:
            return judgement.ranks[i], own
        return -1 if own is None else int(own < 0.5), own

    def _expected(self, judgement: Judgement) -> Row:
        assert judgement.expected is not None
        prompt = self._prompt(judgement, self.scores[-1] if self.codes else None)
        reply = [*self.tokenizer.encode_reply(judgement.expected), self.tokenizer.eos]
        return Row(prompt, reply, True, False, True, score=self.expected_score)

    def _critique(self, judgement: Judgement, i: int) -> Row | None:
        """The critique of a response as a reply to both, so that it can be predicted."""
        critique = judgement.of("critique", i)
        if critique is None:
            return None
        response = judgement.responses[i]
        if isinstance(self.asks, Wording):
            ids = self.format.ids(self.asks.critique_prompt(judgement.prompt, response))
        else:
            template = partial(self.asks.format, response=response)
            ids = self.format.ids(with_last(judgement.prompt, lambda text: template(prompt=text)))
        return Row(ids, [*self.tokenizer.encode_reply(critique), self.tokenizer.eos], True, False, True, critique=True)

    def _imitated(self, score: float, judgement: Judgement) -> bool:
        if self.keep is None:
            return bool(self.codes)
        own = [x for x in judgement.score or () if x is not None]
        return score >= self.keep.threshold(self.scores, own)

    def _prompt(self, judgement: Judgement, score: float | None) -> list[int]:
        """With the code of the score at its end, where there are codes and a score."""
        code = code_of(score, self.scores, self.codes) if self.codes and score is not None else ""
        return self.format.ids(with_last(judgement.prompt, lambda text: text + code))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.format.tokenizer

    def _check(self, row: Row) -> None:
        length = len(row.prompt) + len(row.reply)
        if not row.reply:
            raise ValueError("responses: a reply that was cut off has no token; leave the line out")
        if self.context is not None and length > self.context:
            raise ValueError(
                f"{len(row.prompt)} tokens of the prompt and {len(row.reply)} of the reply are more than the "
                f"{self.context} that a row may have (context); shorten them or leave the line out: nothing is cut"
            )

    def batch(self, groups: Sequence[Sequence[Row]]) -> Batch:
        """All rows, those of a group next to each other."""
        rows = [row for group in groups for row in group]
        paid = [None if row.steps or row.score is None else row.score for row in rows]
        dialogues = [
            (Segment(row.prompt), Segment(row.reply, EXPERT if row.expert else LEARNER, reward=reward))
            for row, reward in zip(rows, paid, strict=True)
        ]
        batch = text_rows.as_batch(dialogues)
        learned = torch.tensor([row.learns for row in rows])
        sizes = torch.tensor([len(group) for group in groups])
        batch = replace(
            batch,
            mask=batch.valid & learned[:, None],
            group=torch.arange(len(groups)).repeat_interleave(sizes),
            rank=torch.tensor([row.rank for row in rows]),
            score=torch.tensor([_or_nan(row.score) for row in rows]),
            extra=self._extra(rows),
        )
        return self._with_steps(batch, rows)

    def _extra(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        extra = {
            "scored": torch.tensor([row.score is not None for row in rows]),
            "finished": torch.tensor([row.finished for row in rows]),
        }
        if "preference" in self.use:
            extra["preference"] = torch.tensor([_or_nan(row.preference) for row in rows])
        if "critique" in self.use:
            extra["critique"] = torch.tensor([row.critique for row in rows])
        return extra

    def _with_steps(self, batch: Batch, rows: Sequence[Row]) -> Batch:
        """With `step_ends` and the labels as rewards there, where steps are used: they are learned from in any case."""
        if "steps" not in self.use or not any(row.steps for row in rows):
            return batch
        ends = torch.zeros_like(batch.mask)
        rewards = torch.zeros(batch.mask.shape) if batch.rewards is None else batch.rewards
        for i, row in enumerate(rows):
            for place, label in row.steps:
                at = len(row.prompt) - 1 + place  # the action at t is token t + 1
                ends[i, at], rewards[i, at] = True, label
        return replace(batch, mask=batch.mask | ends, rewards=rewards, extra=batch.extra | {"step_ends": ends})


def _or_nan(x: float | None) -> float:
    """What is not known is NaN, so that whoever forgets to ask hears of it."""
    return float("nan") if x is None else x
