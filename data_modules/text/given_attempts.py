"""Attempts from a file: the policy learns from replies that it did not sample."""

from __future__ import annotations

from collections.abc import Sequence

from data_modules.text.critics import GivenReply
from data_modules.text.episode import Episode, Prompt, Turn
from data_modules.text.rows import as_rows
from data_modules.text.teacher import Teacher
from lightning_nlf.batch import Actor


def given_attempts(teacher: Teacher, replies: Sequence[GivenReply], actor: Actor) -> list[Episode]:
    """Make an episode of each reply from a file.

    The log-probabilities under the author of a reply are unknown, so the actor's current ones take their place. The
    importance ratio is therefore 1 in the first optimizer step, and does not correct for the reply being off-policy.
    """
    prompts = [teacher.format.ids(reply.case.prompt) for reply in replies]
    batch = as_rows(prompts, [reply.tokens for reply in replies])
    chances = actor.token_log_probs(batch).cpu()
    return [
        _episode(teacher, reply, ids, row[mask].tolist())
        for reply, ids, row, mask in zip(replies, prompts, chances, batch.mask, strict=True)
    ]


def _episode(teacher: Teacher, reply: GivenReply, ids: list[int], log_probs: list[float]) -> Episode:
    outcome = teacher.conversation.task.begin(reply.case).reply(reply.text, reply.finished)
    return Episode(Prompt(reply.case, ids), [Turn(reply.tokens, log_probs, reply.finished, reply.text, outcome)])
