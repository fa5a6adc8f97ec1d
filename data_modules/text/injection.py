"""Trajectory injection for language: who takes over from the learner, where, and in how many replies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.ranges import at_least
from data_modules.takeover import Takeover
from data_modules.text.conversation import Conversation
from data_modules.text.environment import SpanTeacher, TextEnvironment
from data_modules.text.episode import Episode, Prompt
from data_modules.text.taken_over import TakenOver
from lightning_nlf.batch import Actor, TextExpert
from lightning_nlf.numbers import Size


class Injection:
    """Who takes over, where, and in how many replies.

    The expert's tokens are sampled from its whole distribution, and its log-probabilities are stored as those of the
    behaviour. What the whole reply earns is paid at its end.

    Args:
        expert: goes on from any prefix.
        takeover: where: a plan over the tokens of a reply (`Uniform`, `Geometric`, `ReverseCurriculum` …), of which
            the learner is then asked for no more than its part; or by a look at the whole reply: `AtFirstError`, or
            `ValueTriggered`, at the first token before which the critic's V is among the lowest. To the end always.
        injected: replies of each prompt that may be taken over, the last ones.

    Raises:
        ValueError: injected < 1.
    """

    def __init__(self, expert: TextExpert, takeover: Takeover, injected: Size = 1) -> None:
        at_least(1, **{"injection.injected": injected})
        self.expert, self.takeover, self.injected = expert, takeover, injected
        self.typical_length: float | None = None  # tokens of a reply, in the last collection

    def check(self, task: TextEnvironment, replies: int, max_new: int) -> None:
        """Raises ValueError: the task, or the replies to it, are not for such an injection."""
        if task.turns > 1:
            raise ValueError(
                f"injection: {type(task).__name__} has {task.turns} turns, and an expert ends a single one"
            )
        if self.injected > replies:
            raise ValueError(f"injection.injected: got {self.injected}, and there are {replies} replies to a prompt")
        asks, length = self.takeover.asks, self.takeover.length
        if asks == "errors" and not isinstance(task, SpanTeacher):
            kind = type(self.takeover).__name__
            raise ValueError(f"injection.takeover: {kind}, and {type(task).__name__} says no spans of errors")
        if asks is not None and length is not None and length < max_new:
            raise ValueError(
                f"injection.takeover.length: got {length}, and an expert goes on to the end of a reply: "
                f"give max_new, {max_new}, or more"
            )

    def play(
        self,
        conversation: Conversation,
        actor: Actor,
        prompts: list[Prompt],
        seeds: np.ndarray,
        replies: int,
        rng: np.random.Generator,
        experience: int,
    ) -> tuple[list[Episode], int]:
        """As `Conversation.play` with `replies` copies, and with the same words of the learner's up to a take-over.

        Returns: the episodes, and how many tokens the learner said in vain.
        """
        count, longest = len(prompts) * replies, conversation.max_new
        chosen = [row for row in range(count) if row % replies >= replies - self.injected]
        limits = torch.full((count,), longest)
        limits[chosen] = self._planned(len(chosen), longest, rng, experience)
        cases = [prompt for prompt in prompts for _ in range(replies)]
        seeds_after = torch.from_numpy(rng.integers(2**62, size=count))
        pair = TakenOver(actor, self.expert, self.takeover, conversation, cases, chosen, limits, seeds_after)
        episodes = conversation.play(pair, prompts, seeds, replies)
        for row, own in pair.own.items():
            episodes[row].turns[0].own = own
        self.typical_length = float(np.mean([episode.decided for episode in episodes]))
        return episodes, pair.cut_off

    def critiques(self, prompts: int) -> int:
        """How many are asked for in a collection of so many prompts."""
        return prompts * self.injected * (self.takeover.asks == "errors")

    def _planned(self, count: int, longest: int, rng: np.random.Generator, experience: int) -> Tensor:
        """Tokens that the learner may say in each of the chosen replies, (count,)."""
        plan = self.takeover.plan(count, longest, self.typical_length or longest, rng, experience)
        if (plan[:, :-1] & ~plan[:, 1:]).any():
            raise ValueError(
                f"injection.takeover: {type(self.takeover).__name__} gives back to the learner, and an expert goes "
                "on to the end of a reply; use Uniform, Geometric, or ReverseCurriculum without a length"
            )
        return (~plan).sum(1)

    # ---- checkpoint

    def state_dict(self) -> dict[str, Any]:
        moves = self.takeover.state_dict()
        return {"typical_length": self.typical_length} | ({"takeover": moves} if moves else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.typical_length = state["typical_length"]
        self.takeover.load_state_dict(state.get("takeover", {}))
