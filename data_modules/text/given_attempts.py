"""Attempts that were there before the run: replies of a file, which the policy learns from without having said them."""

from __future__ import annotations

from collections.abc import Sequence

from data_modules.text.critics import GivenReply
from data_modules.text.episode import Episode, Prompt, Turn
from data_modules.text.rows import as_rows
from data_modules.text.teacher import Teacher
from lightning_nlf.batch import Actor


def given_attempts(teacher: Teacher, replies: Sequence[GivenReply], actor: Actor) -> list[Episode]:
    """An episode for each reply. Its log-probabilities are what the actor gives its tokens now: how likely they were
    when they were written is not known, so a ratio to them is 1 in the first step, and does not correct for that.
    """
    prompts = [teacher.format.ids(each.case.prompt) for each in replies]
    batch = as_rows(prompts, [each.tokens for each in replies])
    chances = actor.token_log_probs(batch).cpu()
    return [
        _episode(teacher, reply, ids, row[mask].tolist())
        for reply, ids, row, mask in zip(replies, prompts, chances, batch.mask, strict=True)
    ]


def _episode(teacher: Teacher, given: GivenReply, ids: list[int], log_probs: list[float]) -> Episode:
    outcome = teacher.conversation.task.begin(given.case).reply(given.text, given.finished)
    return Episode(Prompt(given.case, ids), [Turn(given.tokens, log_probs, given.finished, given.text, outcome)])
