"""From judgements to rows of a batch: the same layout whatever is known of a reply."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

import torch

from data_modules.feedback.schema import Judgement, Message
from data_modules.feedback.selection import Keep, code_of
from data_modules.text import rows as text_rows
from data_modules.text.rows import EXPERT, LEARNER, Segment
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Batch

Use = Literal["score", "ranking", "steps", "expected", "responses"]


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
    steps: tuple[tuple[int, float], ...] = ()  # place in `reply` of the last token of a step, and the step's label


@dataclass(frozen=True)
class Layout:
    """How judgements become rows.

    Args: scores: of the training replies, in ascending order; the others as of `FeedbackDataModule`.
    """

    tokenizer: Tokenizer
    use: tuple[Use, ...]
    scores: Sequence[float] = ()
    keep: Keep | None = None
    codes: tuple[str, ...] = ()
    context: int | None = None

    def knowing(self, scores: Sequence[float]) -> Layout:
        """The same, of a file whose training replies have these scores, in any order."""
        return replace(self, scores=sorted(scores))

    def rows(self, judgement: Judgement) -> list[Row]:
        """Those of one judgement, which are a group; what nothing is known of gives none.

        Raises:
            ValueError: a text that the tokenizer cannot encode, more tokens than the context; says of which line.
        """
        try:
            replies = [self._reply(judgement, i) for i in range(len(judgement.responses))]
            expected = [self._expected(judgement)] if "expected" in self.use and judgement.expected else []
            found = [row for row in replies if row is not None] + expected
            for row in found:
                self._check(row)
        except ValueError as error:
            raise ValueError(f"{judgement.where}: {error}") from None
        return found

    def _reply(self, judgement: Judgement, i: int) -> Row | None:
        score = judgement.of("score", i)
        steps = judgement.of("steps", i) if "steps" in self.use else None
        ranks = judgement.ranks if "ranking" in self.use else None
        expert = score is not None and self._imitated(score, judgement)
        learns = (score is not None and "score" in self.use) or ranks is not None or "responses" in self.use
        if not learns and not expert and not steps:
            return None
        ends = [step.end for step in steps or ()]
        finished = _finished(judgement, i)
        sampled = self._sampled(judgement, i)
        if sampled is None:
            reply, places = self._encoded(judgement.responses[i], ends)
            reply = reply + [self.tokenizer.eos] * finished
        else:
            reply, places = sampled, self._places(sampled, ends)
        return Row(
            prompt=self._prompt(judgement, score),
            reply=reply,
            finished=finished,
            learns=learns,
            expert=expert,
            rank=-1 if ranks is None else ranks[i],
            score=score if "score" in self.use else None,
            steps=tuple((place, step.label) for place, step in zip(places, steps or (), strict=True)),
        )

    def _expected(self, judgement: Judgement) -> Row:
        assert judgement.expected is not None
        prompt = self._prompt(judgement, self.scores[-1] if self.codes else None)
        return Row(prompt, [*self.tokenizer.encode(judgement.expected), self.tokenizer.eos], True, False, True)

    def _imitated(self, score: float, judgement: Judgement) -> bool:
        if self.keep is None:
            return bool(self.codes)
        own = [x for x in judgement.score or () if x is not None]
        return score >= self.keep.threshold(self.scores, own)

    def _prompt(self, judgement: Judgement, score: float | None) -> list[int]:
        """With the code of the score at its end, where there are codes and a score."""
        code = code_of(score, self.scores, self.codes) if self.codes and score is not None else ""
        return self._opening(judgement.prompt, code)

    @cached_property
    def _opening(self) -> Callable[[str | tuple[Message, ...], str], list[int]]:
        """The responses of a line share their prompt: what was encoded last is kept."""
        return lru_cache(64)(self._opened)

    def _opened(self, prompt: str | tuple[Message, ...], code: str) -> list[int]:
        if isinstance(prompt, str):
            ids = self.tokenizer.encode_prompt(prompt + code)
        else:
            *before, last = prompt
            messages = [*before, Message(last.role, last.content + code)]
            ids = self.tokenizer.encode_prompt([asdict(message) for message in messages])
        if not ids:
            raise ValueError("prompt: it has no token; a reply needs at least one before it")
        return ids

    def _sampled(self, judgement: Judgement, i: int) -> list[int] | None:
        """The ids that were sampled, if `meta` kept them and the tokenizer is the same: text may not give them back."""
        tokens = judgement.meta.get("tokens")
        if tokens is None or judgement.meta.get("tokenizer") != self.tokenizer.digest:
            return None
        lists = tokens if isinstance(tokens, list) and len(tokens) == len(judgement.responses) else [None]
        own = lists[i] if len(lists) > i else None
        if not isinstance(own, list) or not own or not all(type(x) is int and x >= 0 for x in own):
            raise ValueError("meta: tokens must be a list of ids for each response")
        return own

    def _places(self, ids: list[int], ends: Sequence[int]) -> list[int]:
        """The place of the token with which each step ends: the first by which so many characters are said."""
        places = [
            bisect_left(range(len(ids)), end, key=lambda place: len(self.tokenizer.decode(ids[: place + 1])))
            for end in ends
        ]
        if len(set(places)) < len(places) or len(ids) in places:
            raise ValueError("steps: they do not fit the tokens in meta; take these out where a response was changed")
        return places

    def _encoded(self, response: str, ends: Sequence[int]) -> tuple[list[int], list[int]]:
        """The ids, and the place of the last one of each step.

        Encoded step by step, so that no token goes across the end of one.
        """
        ids: list[int] = []
        places: list[int] = []
        for start, end in zip([0, *ends], [*ends, len(response)], strict=True):
            own = self.tokenizer.encode(response[start:end]) if start < end else []
            ids += own
            if len(places) < len(ends):
                if not own:
                    raise ValueError(f"steps: {response[start:end]!r} has no token; let the step before end later")
                places.append(len(ids) - 1)
        return ids, places

    def _check(self, row: Row) -> None:
        length = len(row.prompt) + len(row.reply)
        if not row.reply:
            raise ValueError("responses: a reply that was cut off has no token; leave the line out")
        if self.context is not None and length > self.context:
            raise ValueError(
                f"{len(row.prompt)} tokens of the prompt and {len(row.reply)} of the reply are more than the context "
                f"of {self.context}; shorten them or leave the line out: nothing is cut"
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
        nan = float("nan")  # so that whoever forgets to look at `scored` hears of it
        batch = replace(
            batch,
            mask=batch.valid & learned[:, None],
            group=torch.arange(len(groups)).repeat_interleave(sizes),
            rank=torch.tensor([row.rank for row in rows]),
            score=torch.tensor([nan if row.score is None else row.score for row in rows]),
            extra={
                "scored": torch.tensor([row.score is not None for row in rows]),
                "finished": torch.tensor([row.finished for row in rows]),
            },
        )
        return self._with_steps(batch, rows)

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


def _finished(judgement: Judgement, i: int) -> bool:
    """Whether the response ended by itself: so says `meta.finished`, true or false, or a list with one a response."""
    value = judgement.meta.get("finished", True)
    values = value if isinstance(value, list) else [value] * len(judgement.responses)
    if len(values) != len(judgement.responses) or not isinstance(values[i], bool):
        raise ValueError("meta: finished must be true or false, or a list of these with one for each response")
    return values[i]
