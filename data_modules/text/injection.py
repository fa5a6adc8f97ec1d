"""Trajectory injection for language models: an expert takes over from the learner within a reply."""

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
    """Trajectory injection within a reply: which expert takes over, at which token, and in how many replies.

    The expert's tokens are sampled from the expert's full distribution, and stored with the expert's log-probabilities.
    The reward of the whole reply is given at its end.

    Args:
        expert: model that continues a reply from any prefix to the end.
        takeover: where the expert takes over. Either a plan over tokens (`Uniform`, `Geometric`, `ReverseCurriculum`
            …), so that the learner samples only its own part; or a rule that looks at the learner's whole reply:
            `AtFirstError`, or `ValueTriggered`, which takes over at the first token whose state has one of the lowest
            values V.
        injected: number of replies per prompt that the expert may take over; these are the last replies of the group.

    Raises:
        ValueError: injected < 1.
    """

    def __init__(self, expert: TextExpert, takeover: Takeover, injected: Size = 1) -> None:
        at_least(1, **{"injection.injected": injected})
        self.expert, self.takeover, self.injected = expert, takeover, injected
        self.typical_length: float | None = None  # mean number of tokens per reply in the last collection

    def check(self, task: TextEnvironment, replies: int, max_new: int) -> None:
        """Check that injection is possible.  Raises ValueError: the task, `replies` or `max_new` prevents it."""
        if task.turns > 1:
            raise ValueError(
                f"injection: {type(task).__name__} has {task.turns} turns; injection supports tasks of one turn only"
            )
        if self.injected > replies:
            raise ValueError(f"injection.injected: got {self.injected}, and there are {replies} replies to a prompt")
        asks, length = self.takeover.asks, self.takeover.length
        if asks == "errors" and not isinstance(task, SpanTeacher):
            kind = type(self.takeover).__name__
            raise ValueError(
                f"injection.takeover: {kind} needs a task with spans of errors, and {type(task).__name__} has none; "
                "use a plan, such as Uniform"
            )
        if asks is not None and length is not None and length < max_new:
            raise ValueError(
                f"injection.takeover.length: got {length}, but the expert continues to the end of a reply: give at "
                f"least max_new, {max_new}"
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
        """Play episodes like `Conversation.play` with `replies` copies, and let the expert take over in some of them.

        Up to the take-over, the learner's tokens are the same as without an injection.

        Returns: the episodes, and the number of the learner's tokens that were discarded.
        """
        count, longest = len(prompts) * replies, conversation.max_new
        chosen = [row for row in range(count) if row % replies >= replies - self.injected]
        limits = torch.full((count,), longest)
        limits[chosen] = self._planned(len(chosen), longest, rng, experience)
        cases = [prompt for prompt in prompts for _ in range(replies)]
        seeds_after = torch.from_numpy(rng.integers(2**62, size=count))
        pair = TakenOver(actor, self.expert, self.takeover, conversation, cases, chosen, limits, seeds_after)
        episodes = conversation.play(pair, prompts, seeds, replies)
        for row, count in pair.learner_tokens.items():
            episodes[row].turns[0].learner_tokens = count
        self.typical_length = float(np.mean([episode.decided for episode in episodes]))
        return episodes, pair.cut_off

    def critiques(self, prompts: int) -> int:
        """Number of critiques that a collection of `prompts` prompts needs."""
        return prompts * self.injected * (self.takeover.asks == "errors")

    def _planned(self, count: int, longest: int, rng: np.random.Generator, experience: int) -> Tensor:
        """Maximum number of learner tokens in each of the chosen replies, (count,)."""
        plan = self.takeover.plan(count, longest, self.typical_length or longest, rng, experience)
        if (plan[:, :-1] & ~plan[:, 1:]).any():
            raise ValueError(
                f"injection.takeover: {type(self.takeover).__name__} returns control to the learner, but the expert "
                "continues to the end of a reply; use Uniform, Geometric, or ReverseCurriculum without a length"
            )
        return (~plan).sum(1)

    # ---- checkpoint

    def state_dict(self) -> dict[str, Any]:
        moves = self.takeover.state_dict()
        return {"typical_length": self.typical_length} | ({"takeover": moves} if moves else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.typical_length = state["typical_length"]
        self.takeover.load_state_dict(state.get("takeover", {}))
