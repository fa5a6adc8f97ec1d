"""Self-critique and self-revision: a local language policy as the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_modules.feedback.providers.provider import Account, with_answers
from data_modules.feedback.providers.rules import EnvironmentProvider
from data_modules.judgements.schema import Judgement, PromptText
from data_modules.text.environment import Revisable, TextEnvironment
from data_modules.text.prompts import Chat, PromptFormat
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.writer import Writer
from lightning_nlf.batch import Replier
from lightning_nlf.numbers import Size


class OwnProvider(EnvironmentProvider):
    """Self-critique and self-revision by a local policy.

    The policy writes a `critique` of each response, and a revision of the first criticised response, which becomes
    `expected`. All texts are decoded greedily. The critiques may be wrong. The policy must have learned to write
    critiques (`learn: [critiques]` of `RevisionDataModule`).

    Args:
        policy: the policy that writes critiques and revisions, such as `CheckpointTextExpert`.
        tokenizer: the policy's tokenizer. A tokenizer without a vocabulary is fitted to the task's corpus.
        task: a `Revisable` task with the prompts and the wording of critique and revision requests.
        max_new: maximum number of tokens in a critique or a revision.
        chat: see `PromptFormat`.

    Raises:
        ValueError: the task is not `Revisable`, or the tokenizer's ids are not the policy's; or in `complete`, a prompt
            or a word is unknown.
    """

    gives = ("critique", "expected")
    name = "policy"

    def __init__(
        self,
        policy: Replier,
        tokenizer: Tokenizer,
        task: TextEnvironment,
        max_new: Size = 48,
        chat: bool | Chat | None = None,
    ) -> None:
        super().__init__(task)
        if not isinstance(task, Revisable):
            raise ValueError(f"task: {type(task).__name__} has no prompts for critiques; use a Revisable task")
        self.policy, self.words, self.max_new = policy, task, max_new
        self.tokenizer = tokenizer if tokenizer.ready else tokenizer.fit(task.corpus())
        self.format = PromptFormat(self.tokenizer, chat)
        digest = getattr(policy, "tokenizer_digest", None)
        if digest not in (None, self.tokenizer.digest):
            raise ValueError(
                f"tokenizer: the policy was trained with another one (digest {digest[:12]}…); use that one"
            )

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        account, completed = Account(), list(judgements)
        uncriticised = [
            (place, i)
            for place, judgement in enumerate(completed)
            for i in range(len(judgement.responses))
            if judgement.of("critique", i) is None
        ]
        cases = [self._case(judgement) for judgement in completed]
        prompts = [self.words.critique_prompt(cases[place], completed[place].responses[i]) for place, i in uncriticised]
        for (place, i), critique in zip(uncriticised, self._replies(prompts), strict=True):
            if critique and critique != self.words.praise:
                critiques = list(completed[place].critique or [None] * len(completed[place].responses))
                critiques[i] = critique
                completed[place] = with_answers(completed[place], self.name, critique=tuple(critiques))
        revised = [
            (place, at) for place, judgement in enumerate(completed) if (at := _criticised(judgement)) is not None
        ]
        prompts = [
            self.words.revision_prompt(cases[place], completed[place].responses[i], completed[place].of("critique", i))
            for place, i in revised
        ]
        for (place, _), text in zip(revised, self._replies(prompts), strict=True):
            if text:
                completed[place] = with_answers(completed[place], self.name, expected=text)
        account.counters["calls"] += len(uncriticised) + len(revised)
        for _ in completed:
            tick()
        return completed, account

    def _replies(self, prompts: Sequence[PromptText]) -> list[str]:
        """The policy's greedy reply to each prompt."""
        writer = Writer(self.policy, self.format, (self.tokenizer.eos,))
        return [reply.text for reply in writer.replies([self.format.ids(prompt) for prompt in prompts], self.max_new)]


def _criticised(judgement: Judgement) -> int | None:
    """Index of the first criticised response; None if there is none, or if there already is an expected response."""
    if judgement.expected is not None:
        return None
    return next((i for i in range(len(judgement.responses)) if judgement.of("critique", i) is not None), None)
