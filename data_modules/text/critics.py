"""Interfaces of critics and revisers that work on batches of text, for tasks without their own critiques."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from data_modules.text.environment import Case, Revisable
from data_modules.text.prompts import PromptFormat
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.writer import Writer, Written

UNHEARD = ""  # the critic gave no answer, so it is unknown whether the reply is right


@dataclass(frozen=True)
class Acting:
    """What a critic or reviser may use: the model in training, the prompt texts around a critique, and the device."""

    policy: Writer
    words: Revisable
    device: torch.device


class Critic(Protocol):
    """Interface of a critic, which criticises replies in words."""

    counters: dict[str, int]  # the cost so far, by name

    def critiques(
        self, cases: Sequence[Case], replies: Sequence[str], seeds: Sequence[int], acting: Acting
    ) -> list[str | None]:
        """Return the critique of each reply: None if nothing is wrong, and "" if the critic gave no answer.

        Args: cases, replies, seeds: one entry for each reply; acting: the model in training.
        Raises:
            TeacherStopped: the critic cannot go on, for example because the budget of an endpoint is spent.
        """
        ...


@runtime_checkable
class Reviser(Protocol):
    """Interface of a reviser, which writes improved replies as text. The log-probabilities of the text are unknown."""

    counters: dict[str, int]  # the cost so far, by name

    def revisions(
        self,
        cases: Sequence[Case],
        replies: Sequence[str],
        critiques: Sequence[str],
        seeds: Sequence[int],
        acting: Acting,
    ) -> list[Written | None]:
        """Return a revision of each reply; None if the reviser did not write one.

        Args, raises: as in `Critic.critiques`.
        """
        ...


@runtime_checkable
class Checked(Protocol):
    """Optional interface of a critic or reviser: a check before training that task and policy are suitable."""

    def check(self, name: str, cases: Sequence[Case], words: Revisable, policy: PromptFormat) -> None:
        """Check that the critic or reviser can work with a task and policy.

        Args: name: the setting that holds the critic or reviser; cases: all cases of the task; words: the prompt texts
            around a critique; policy: how the policy's prompts become ids.
        Raises:
            ValueError: something is missing; the message starts with `name`.
        """


@dataclass(frozen=True)
class GivenReply:
    """A reply that was written before the run."""

    case: Case
    text: str
    tokens: list[int]  # includes the stop token, unless the reply was cut off
    finished: bool


@runtime_checkable
class CriticOfGivenReplies(Critic, Protocol):
    """A critic with critiques of a fixed set of replies. Training uses these replies as the attempts."""

    def replies(self, cases: Sequence[Case], tokenizer: Tokenizer) -> list[GivenReply]:
        """All replies to these cases that have a critique."""

        ...
