"""Who criticises replies and who revises them where the task does not: asked in batches, text in and text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from data_modules.text.environment import Case, Revisable
from data_modules.text.prompts import PromptFormat
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.writer import Writer, Written

UNHEARD = ""  # in the place of a critique: the critic said nothing, so nobody knows whether the reply is right


@dataclass(frozen=True)
class Acting:
    """The model that is being trained as a writer, the sentences around a critique, and the device it is on."""

    policy: Writer
    words: Revisable
    device: torch.device


class Critic(Protocol):
    """Says in words what is wrong with replies."""

    counters: dict[str, int]  # what it cost so far, by name

    def critiques(
        self, cases: Sequence[Case], replies: Sequence[str], seeds: Sequence[int], acting: Acting
    ) -> list[str | None]:
        """The critique of each reply; None where nothing is wrong, and "" where the critic said nothing.

        Args: cases, replies, seeds: one for each reply; acting: the model that is trained.
        Raises:
            TeacherStopped: the critic cannot go on, such as an endpoint whose budget is spent.
        """
        ...


@runtime_checkable
class Reviser(Protocol):
    """Writes better replies as texts. Their tokens are encoded, and how likely they were is not known."""

    counters: dict[str, int]  # what it cost so far, by name

    def revisions(
        self,
        cases: Sequence[Case],
        replies: Sequence[str],
        critiques: Sequence[str],
        seeds: Sequence[int],
        acting: Acting,
    ) -> list[Written | None]:
        """A revision of each reply; None where there is none.

        Args, raises: as of `Critic.critiques`.
        """
        ...


@runtime_checkable
class Checked(Protocol):
    """A critic or a reviser that can say before training what it lacks."""

    def check(self, name: str, cases: Sequence[Case], words: Revisable, policy: PromptFormat) -> None:
        """Refuse what it cannot be asked.

        Args: name: of the knob that it stands at; cases: all of the task; words: the sentences around a critique;
            policy: how the policy's prompts become ids.
        Raises:
            ValueError: what is missing, by the name of the knob.
        """


@dataclass(frozen=True)
class GivenReply:
    """A reply that was there before the run."""

    case: Case
    text: str
    tokens: list[int]  # with the stop token, if it ended by itself
    finished: bool


@runtime_checkable
class CriticOfGivenReplies(Critic, Protocol):
    """A critic that knows some replies and no others, so these are the attempts."""

    def replies(self, cases: Sequence[Case], tokenizer: Tokenizer) -> list[GivenReply]:
        """All replies to these cases that have a critique."""
        ...
