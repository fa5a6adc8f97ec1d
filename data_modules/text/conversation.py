"""Play dialogues between policy and environment, and turn the episodes into rows of a batch."""

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
from data_modules.text.episode import Episode, Prompt, Turn, reply_segments
from data_modules.text.prompts import Chat, PromptFormat
from data_modules.text.rows import Segment, as_batch
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Batch, Replier


@dataclass(frozen=True)
class Conversation:
    """Play episodes of a text task, and turn episodes into rows.

    Args:
        max_new: maximum number of tokens in a reply.
        window: number of turns that the policy sees, including the current turn. A row is then one turn, and starts
            with the environment's text from `window` turns ago. None = a row is the whole dialogue, and the policy
            keeps its state.
        suffix: text added to the end of the prompt that starts a row.
        top_k, top_p, temperature: sampling settings, see `Replier.reply`.
        stop: further stop tokens, each given as a text of exactly one token. They end a reply as eos does.
        chat: whether and how the chat template is applied to the prompt that starts a row, see `PromptFormat`. With a
            chat template the environment's text is the user's next message, and with a window each row is a separate
            chat.
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
        """The token ids that end a reply, eos first.

        Raises:
            ValueError: a text of `stop` is not one token.
        """
        try:
            return (self.tokenizer.eos, *map(self.tokenizer.token, self.stop))
        except ValueError as error:
            raise ValueError(f"stop: {error}; give texts that are one token each, or leave it out") from None

    @cached_property
    def format(self) -> PromptFormat:
        """The format that turns prompts into ids."""
        return PromptFormat(self.tokenizer, self.chat, self.suffix)

    @property
    def by_turn(self) -> bool:
        """Whether a dialogue is a chat of several turns, with alternating messages of user and assistant."""
        return self.task.turns > 1 and self.format.template is not None

    @cached_property
    def answer(self) -> Any:
        """Function from the environment's text to its ids, for rows of plain text; results are cached."""
        return lru_cache(65536)(self.tokenizer.encode)

    def visible(self, episode: Episode, turn: int) -> tuple[PromptText, list[Turn]]:
        """What the policy sees before its reply in a turn: the prompt that starts the row, and all turns since then."""
        first = 0 if self.window is None else max(turn - self.window + 1, 0)
        start = episode.turns[first - 1].outcome.text if first else episode.prompt.case.prompt
        return start, episode.turns[first:turn]

    def messages(self, start: PromptText, turns: Sequence[Turn]) -> PromptText:
        """The context of a reply as a prompt: all messages if the dialogue is a chat, else only `start`."""
        chat = self.format.posed(start)
        for turn in () if isinstance(chat, str) else turns:
            chat = (*chat, Message("assistant", turn.text), Message("user", turn.outcome.text))
        return chat

    def between(self, start: PromptText, turns: Sequence[Turn]) -> list[int]:
        """The ids between the last reply and the next reply: the environment's answer to the last of the `turns`.

        In a chat the answer is the user's next message, with everything that the template writes between two replies.

        Args: start: the prompt that the row starts with; turns: all turns since the start of the row, at least one.
        Raises:
            ValueError: as `Tokenizer.encode` and `Tokenizer.encode_turn`.
        """
        *before, last = turns
        chat = self.messages(start, before)
        if isinstance(chat, str):
            return self.answer(last.outcome.text)
        return self.format.turn(last.outcome.text, chat, last.tokens[-1] if last.finished else None)

    def check_turns(self, case: Case) -> None:
        """Check that the chat template accepts a second turn, if the task has one.  Raises ValueError: it does not."""
        if not self.by_turn or self.window == 1:
            return
        reply = Turn([self.tokenizer.eos], [0.0], True, "", Outcome(0.0, text="."))
        try:
            self.between(case.prompt, [reply])
        except ValueError as error:
            kind = type(self.task).__name__
            raise ValueError(
                f"chat: {kind} has {self.task.turns} turns, and the template accepts one: {error}; set chat: false"
            ) from None

    def play(
        self, actor: Replier, prompts: list[Prompt], seeds: np.ndarray, copies: int = 1, deterministic: bool = False
    ) -> list[Episode]:
        """Play `copies` episodes of every prompt to the end. Episodes of one prompt are next to each other.

        A dialogue also ends when the actor's context has no room for another reply.

        Args: seeds: (episodes, turns) int64, one seed per reply. A reply depends on no other seed.
        """
        episodes = [Episode(prompt) for prompt in prompts for _ in range(copies)]
        dialogues = [self.task.begin(episode.prompt.case) for episode in episodes]
        running, keep, state = list(range(len(episodes))), None, None
        new, context = [prompt.ids for prompt in prompts], context_of(actor)
        lengths = [len(episode.prompt.ids) for episode in episodes]  # number of tokens in each dialogue so far
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
            replies = zip(tokens.tolist(), log_probs.tolist(), counts.tolist(), strict=True)
            for place, (row, (ids, chances, count)) in enumerate(zip(running, replies, strict=True)):
                episodes[row].turns.append(self._turn(dialogues[row], ids[:count], chances[:count]))
                lengths[row] += count if first else count + len(new[place]) - 1
            left = [place for place, row in enumerate(running) if not episodes[row].turns[-1].outcome.over]
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
        """The text of a reply, without its stop token."""
        return self.tokenizer.decode(self.unstopped(reply))

    def unstopped(self, reply: Sequence[int]) -> Sequence[int]:
        """The tokens of a reply, without its stop token."""
        return reply[:-1] if reply[-1] in self.stops else reply

    def _unread(self, episode: Episode) -> list[int]:
        """The ids that the policy must read before its next reply: with a window the whole context, else the new ids.

        Raises ValueError: the environment's text cannot be encoded; the message has the case and the turn.
        """
        try:
            if self.window is not None:
                return self._context_ids(episode, len(episode.turns))
            last = episode.turns[-1].tokens[-1]  # the policy's state does not include this token yet
            return [last, *self.between(episode.prompt.case.prompt, episode.turns)]
        except ValueError as error:
            where = f"case {episode.prompt.case.id!r}, turn {len(episode.turns)}"
            raise ValueError(f"{where}: text of the environment: {error}") from None

    def _context_ids(self, episode: Episode, turn: int) -> list[int]:
        """The ids of the context before the reply in `turn`, within the window."""
        start, turns = self.visible(episode, turn)
        ids = list(episode.prompt.ids if len(turns) == turn else self.format.ids(start))
        for place, between in enumerate(turns, 1):
            ids += between.tokens + self.between(start, turns[:place])
        return ids

    # ---- rows

    def batch(self, episodes: list[Episode], also: Sequence[Sequence[Segment]] = ()) -> tuple[Batch, Tensor]:
        """Make one batch of all rows of the episodes, with the task's rewards, followed by the rows in `also`.

        Returns: the batch, and the index of each row's episode, (B,), −1 for rows of `also`. With a window each row is
            a part of an episode: `extra` has the indices `episode` and `part`, and `terminated` is True only for the
            last part.
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
        """The training rows of an episode: one row for the dialogue, or with a window one row per turn, in order."""
        if self.window is None:
            return [self.dialogue(episode)]
        return [
            [Segment(self._context_ids(episode, turn)), *reply_segments(reply)]
            for turn, reply in enumerate(episode.turns)
        ]

    def dialogue(self, episode: Episode) -> list[Segment]:
        """The whole episode as one row."""
        segments = [Segment(episode.prompt.ids)]
        for place, turn in enumerate(episode.turns):
            if place:
                segments.append(Segment(self.between(episode.prompt.case.prompt, episode.turns[:place])))
            segments += reply_segments(turn)
        return segments
