"""Make rows of a batch from judgements: one layout for scores, rankings, preferences, critiques and steps."""

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
    """A prompt, a reply, and the feedback on the reply. Missing feedback is None."""

    prompt: list[int]
    reply: list[int]  # includes the stop token unless the reply was cut off
    finished: bool
    learns: bool  # the reply counts as the learner's, and a field in `use` judges all of it
    expert: bool  # the reply is imitated
    rank: int = -1
    score: float | None = None
    preference: float | None = None  # probability that this reply is better than the other reply of a pair
    critique: bool = False  # the reply is a critique of the reply in a different row
    steps: tuple[tuple[int, float], ...] = ()  # for each step, the position of its last token in `reply`, and its label


@dataclass(frozen=True)
class Layout:
    """Convert judgements into rows.

    Args: format: format that encodes prompts; scores: scores of the training replies in ascending order; see
        `FeedbackDataModule` for all other arguments.
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
    def critique_wording(self) -> str | Wording:
        """The prompt before a critique: as given, else chat turns if there is a template, else one line of text."""
        if self.critique_prompt is not None:
            return self.critique_prompt
        return CRITIQUE_PROMPT if self.format.template is None else Wording()

    def texts(self, judgement: Judgement) -> list[str]:
        """All texts that the model reads or writes, to fit a tokenizer."""
        texts = [
            *texts_of(judgement.prompt),
            *judgement.responses,
            *([judgement.expected] if judgement.expected else []),
        ]
        if "critique" in self.use:
            texts += filter(None, judgement.critique or ())
            words = self.critique_wording
            texts += words.texts() if isinstance(words, Wording) else [words.format(prompt=" ", response=" ")]
        return texts

    def rows(self, judgement: Judgement) -> list[Row]:
        """The rows of one judgement, which form a group. A reply without feedback gets no row.

        Raises:
            ValueError: the tokenizer cannot encode a text, or a row is longer than the context; the message gives the
                line.
        """
        try:
            places = range(len(judgement.responses))
            replies = [self._reply(judgement, i) for i in places]
            expected = [self._expected(judgement)] if "expected" in self.use and judgement.expected else []
            critiques = [self._critique(judgement, i) for i in places] if "critique" in self.use else []
            group = [row for row in [*replies, *expected, *critiques] if row is not None]
            for row in group:
                self._check(row)
        except ValueError as error:
            raise ValueError(f"{judgement.where}: {error}") from None
        return group

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
        """The rank of a response (−1 if unranked), and the probability that it is the better response of a pair.

        Without a ranking, the rank follows from the preference: the more probable winner has rank 0, and ½ is a tie.
        """
        first = judgement.preference if "preference" in self.use else None
        chance = first if first is None or i == 0 else 1 - first
        if "ranking" in self.use and judgement.ranks is not None:
            return judgement.ranks[i], chance
        return -1 if chance is None else int(chance < 0.5), chance

    def _expected(self, judgement: Judgement) -> Row:
        assert judgement.expected is not None
        prompt = self._prompt(judgement, self.scores[-1] if self.codes else None)
        reply = [*self.tokenizer.encode_reply(judgement.expected), self.tokenizer.eos]
        return Row(prompt, reply, True, False, True, score=self.expected_score)

    def _critique(self, judgement: Judgement, i: int) -> Row | None:
        """A row whose reply is the critique of response i, so that the model learns to predict critiques."""
        critique = judgement.of("critique", i)
        if critique is None:
            return None
        response = judgement.responses[i]
        if isinstance(self.critique_wording, Wording):
            ids = self.format.ids(self.critique_wording.critique_prompt(judgement.prompt, response))
        else:
            template = partial(self.critique_wording.format, response=response)
            ids = self.format.ids(with_last(judgement.prompt, lambda text: template(prompt=text)))
        return Row(ids, [*self.tokenizer.encode_reply(critique), self.tokenizer.eos], True, False, True, critique=True)

    def _imitated(self, score: float, judgement: Judgement) -> bool:
        if self.keep is None:
            return bool(self.codes)
        prompt_scores = [x for x in judgement.score or () if x is not None]
        return score >= self.keep.threshold(self.scores, prompt_scores)

    def _prompt(self, judgement: Judgement, score: float | None) -> list[int]:
        """The ids of the prompt, which ends with the control code of the score if there are codes and a score."""
        code = code_of(score, self.scores, self.codes) if self.codes and score is not None else ""
        return self.format.ids(with_last(judgement.prompt, lambda text: text + code))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.format.tokenizer

    def _check(self, row: Row) -> None:
        length = len(row.prompt) + len(row.reply)
        if not row.reply:
            raise ValueError("responses: a reply that was cut off has no tokens; remove the line")
        if self.context is not None and length > self.context:
            raise ValueError(
                f"{len(row.prompt)} tokens of the prompt and {len(row.reply)} of the reply are more than the context "
                f"of {self.context}; shorten them or remove the line: nothing is truncated"
            )

    def batch(self, groups: Sequence[Sequence[Row]]) -> Batch:
        """Make a batch of all rows. The rows of a group are adjacent."""
        rows = [row for group in groups for row in group]
        final_rewards = [None if row.steps or row.score is None else row.score for row in rows]
        dialogues = [
            (Segment(row.prompt), Segment(row.reply, EXPERT if row.expert else LEARNER, reward=reward))
            for row, reward in zip(rows, final_rewards, strict=True)
        ]
        batch = text_rows.as_batch(dialogues)
        learns = torch.tensor([row.learns for row in rows])
        sizes = torch.tensor([len(group) for group in groups])
        batch = replace(
            batch,
            mask=batch.valid & learns[:, None],
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
        """Add step labels to a batch as rewards at `step_ends`, if steps are used; `mask` is True there in any case."""
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
    """Replace a missing value by NaN, so that a use without a mask becomes visible."""
    return float("nan") if x is None else x
