"""The loop over turns: what the policy replies, what the environment says to that, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_modules.judgements.schema import Message, PromptText
from data_modules.text.checks import context_of
from data_modules.text.environment import Case, Dialogue, Outcome, TextEnvironment
from data_modules.text.episode import Episode, Prompt, Turn, spoken
from data_modules.text.prompts import Chat, PromptFormat
from data_modules.text.rows import Segment, as_batch
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Batch, Replier


@dataclass(frozen=True)
class Conversation:
    """How episodes of a task are played, and how they become rows.

    Args:
        max_new: tokens a reply may have.
        window: turns that the policy sees, its own included: a row is then one turn, and starts with what was said
            `window` turns ago. Without it the whole dialogue is one row, of which the policy keeps its state.
        suffix: text behind what a row starts with.
        top_k, top_p, temperature: of sampling, as of `Replier.reply`.
        stop: texts of one token, each of which ends a reply as eos does.
        chat: how what a row starts with goes through the chat template, of `PromptFormat`. What the environment says
            is then the user's next message. With a window a row is a chat of its own.
    """

    task: TextEnvironment
    tokenizer: Tokenizer
    max_new: int
    window: int | None = None
    suffix: str = ""
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    chat: bool | Chat | None = None
    temperature: float = 1.0

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """The ids that end a reply, eos first.

        Raises:
            ValueError: a text of `stop` that is not one token.
        """
        try:
            return (self.tokenizer.eos, *map(self.tokenizer.token, self.stop))
        except ValueError as error:
            raise ValueError(f"stop: {error}; name a text that is one token, or leave it out") from None

    @cached_property
    def format(self) -> PromptFormat:
        """How prompts become ids."""
        return PromptFormat(self.tokenizer, self.chat, self.suffix)

    @property
    def by_turn(self) -> bool:
        """Whether a dialogue is a chat of several turns, with messages of user and assistant in turn."""
        return self.task.turns > 1 and self.format.template is not None

    @cached_property
    def answer(self) -> Any:
        """The ids of the environment's text in a row of plain text.  text → ids"""
        return lru_cache(65536)(self.tokenizer.encode)

    def heard(self, episode: Episode, turn: int) -> tuple[PromptText, list[Turn]]:
        """What the policy sees before its reply of a turn: what that starts with, and the turns since then."""
        first = 0 if self.window is None else max(turn - self.window + 1, 0)
        start = episode.turns[first - 1].outcome.text if first else episode.prompt.case.prompt
        return start, episode.turns[first:turn]

    def messages(self, start: PromptText, turns: Sequence[Turn]) -> PromptText:
        """What stands before a reply, posed: of a chat all messages; of plain text its start alone."""
        chat = self.format.posed(start)
        for turn in () if isinstance(chat, str) else turns:
            chat = (*chat, Message("assistant", turn.text), Message("user", turn.outcome.text))
        return chat

    def between(self, start: PromptText, turns: Sequence[Turn]) -> list[int]:
        """The ids between the reply of the last of some turns and the next reply: what the environment says to it.

        In a chat it is the user's next message, with all that the template writes between two replies.

        Args: start: the prompt that the row starts with; turns: from there on, at least one.
        Raises:
            ValueError: as `Tokenizer.encode` and `Tokenizer.encode_turn`.
        """
        *before, last = turns
        chat = self.messages(start, before)
        if isinstance(chat, str):
            return self.answer(last.outcome.text)
        return self.format.turn(last.outcome.text, chat, last.tokens[-1] if last.finished else None)

    def check_turns(self, case: Case) -> None:
        """Raises ValueError: the task has several turns, and the chat template refuses a second one."""
        if not self.by_turn or self.window == 1:
            return
        reply = Turn([self.tokenizer.eos], [0.0], True, "", Outcome(0.0, text="."))
        try:
            self.between(case.prompt, [reply])
        except ValueError as error:
            kind = type(self.task).__name__
            raise ValueError(
                f"chat: {kind} has {self.task.turns} turns, and the template takes one: {error}; say chat: false"
            ) from None

    def play(
        self, actor: Replier, prompts: list[Prompt], seeds: np.ndarray, copies: int = 1, deterministic: bool = False
    ) -> list[Episode]:
        """One episode for each of the `copies` of every prompt, next to each other, until it is over.

        A dialogue also ends where the actor's context has no room for another reply.

        Args: seeds: (episodes, turns) int64; a reply depends on its own alone.
        """
        episodes = [Episode(prompt) for prompt in prompts for _ in range(copies)]
        dialogues = [self.task.begin(episode.prompt.case) for episode in episodes]
        running, keep, state = list(range(len(episodes))), None, None
        new, context = [prompt.ids for prompt in prompts], context_of(actor)
        lengths = [len(episode.prompt.ids) for episode in episodes]  # of the dialogues so far
        for turn in range(self.task.turns):
            first = turn == 0
            tokens, log_probs, counts, state = actor.reply(
                pad_sequence([torch.tensor(ids) for ids in new], batch_first=True),
                torch.tensor([len(ids) for ids in new]),
                state,
                stop=self.stops,
                max_new=self.max_new,
                copies=copies if first else 1,
                seeds=torch.from_numpy(seeds[running, turn]),
                top_k=self.top_k,
                top_p=self.top_p,
                temperature=self.temperature,
                deterministic=deterministic,
                resume=self.window is None and turn + 1 < self.task.turns,
                keep=keep,
            )
            said = zip(tokens.tolist(), log_probs.tolist(), counts.tolist(), strict=True)
            for place, (row, (ids, chances, count)) in enumerate(zip(running, said, strict=True)):
                episodes[row].turns.append(self._turn(dialogues[row], ids[:count], chances[:count]))
                lengths[row] += count if first else count + len(new[place]) - 1
            left = [place for place, row in enumerate(running) if not episodes[row].turns[-1].outcome.done]
            if turn + 1 == self.task.turns:
                break
            unread = {place: self._unread(episodes[running[place]]) for place in left}
            if context is not None:
                read = {place: 0 if self.window else lengths[running[place]] - 1 for place in left}
                fits = {place: read[place] + len(unread[place]) + self.max_new <= context for place in left}
                for place in left:
                    episodes[running[place]].cut = not fits[place]
                left = [place for place in left if fits[place]]
            if not left:
                break
            new = [unread[place] for place in left]
            keep = torch.tensor(left) if self.window is None and len(left) < len(running) else None
            running = [running[place] for place in left]
        return episodes

    def _turn(self, dialogue: Dialogue, tokens: list[int], log_probs: list[float]) -> Turn:
        text, finished = self.text(tokens), tokens[-1] in self.stops
        return Turn(tokens, log_probs, finished, text, dialogue.reply(text, finished))

    def text(self, reply: Sequence[int]) -> str:
        """What a reply says, without the token that ended it."""
        return self.tokenizer.decode(self.unstopped(reply))

    def unstopped(self, reply: Sequence[int]) -> Sequence[int]:
        """Its tokens without the one that ended it."""
        return reply[:-1] if reply[-1] in self.stops else reply

    def _unread(self, episode: Episode) -> list[int]:
        """What the policy has to read before its next reply: with a window everything it sees, else what is new.

        Raises ValueError: what the environment says cannot be encoded; names the case and the turn.
        """
        try:
            if self.window is not None:
                return self._seen(episode, len(episode.turns))
            last = episode.turns[-1].tokens[-1]  # the state has not read it yet
            return [last, *self.between(episode.prompt.case.prompt, episode.turns)]
        except ValueError as error:
            where = f"case {episode.prompt.case.id!r}, turn {len(episode.turns)}"
            raise ValueError(f"{where}: what the environment says: {error}") from None

    def _seen(self, episode: Episode, turn: int) -> list[int]:
        """The ids in front of the reply of `turn`, within the window."""
        start, turns = self.heard(episode, turn)
        ids = list(episode.prompt.ids if len(turns) == turn else self.format.ids(start))
        for place, between in enumerate(turns, 1):
            ids += between.tokens + self.between(start, turns[:place])
        return ids

    # ---- rows

    def batch(self, episodes: list[Episode], also: Sequence[Sequence[Segment]] = ()) -> tuple[Batch, Tensor]:
        """The rows of all, paid by the task's rule, and of `also`; and the episode that each is of, (B,), −1 of `also`.

        With a window `extra` holds `episode` and `part`, and only the last part of an episode has terminated.
        """
        rows = [self.rows(episode) for episode in episodes]
        of = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(parts) for parts in rows]))
        batch = as_batch([*chain.from_iterable(rows), *also])
        if self.window is None:
            return batch, torch.cat([of, of.new_full((len(also),), -1)])
        part = torch.arange(len(of)) - torch.searchsorted(of, of)
        ended = torch.cat([of[1:] != of[:-1], torch.ones(1, dtype=torch.bool)])
        return replace(batch, terminated=ended, extra={"episode": of, "part": part}), of

    def rows(self, episode: Episode) -> list[list[Segment]]:
        """What an episode is learned from: one dialogue, or with a window one a turn, in order."""
        if self.window is None:
            return [self.dialogue(episode)]
        return [[Segment(self._seen(episode, turn)), *spoken(reply)] for turn, reply in enumerate(episode.turns)]

    def dialogue(self, episode: Episode) -> list[Segment]:
        """The whole of it in one row."""
        segments = [Segment(episode.prompt.ids)]
        for place, turn in enumerate(episode.turns):
            if place:
                segments.append(Segment(self.between(episode.prompt.case.prompt, episode.turns[:place])))
            segments += spoken(turn)
        return segments
