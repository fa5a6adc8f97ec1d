"""The policy itself, or any language policy of ours, as the teacher: it criticises replies, and says what to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_modules.feedback.providers.provider import Account, said
from data_modules.feedback.providers.rules import EnvironmentProvider
from data_modules.judgements.schema import Judgement, PromptText
from data_modules.text.environment import Revisable, TextEnvironment
from data_modules.text.prompts import Chat, PromptFormat
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.writer import Writer
from lightning_nlf.batch import Replier
from lightning_nlf.numbers import Size


class OwnProvider(EnvironmentProvider):
    """Self-critique, and self-revision after it: `critique` of each response, and of the first that has one a revision
    as the `expected` response. The judgement is a model's, right or not; its words are its likeliest.

    A policy that was trained to predict critiques (`learn: [critiques]` of `RevisionDataModule`) can do this.

    Args:
        policy: such as `CheckpointTextExpert`.
        tokenizer: the policy's; made from the task's corpus, or a model's own.
        task: `Revisable`: its prompts, and the words around a critique.
        max_new: tokens that a critique or a revision may have.
        chat: of `PromptFormat`.

    Raises:
        ValueError: a task without these words, a tokenizer of other ids; in `complete` an unknown prompt or word.
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
            raise ValueError(f"task: {type(task).__name__} has no words around a critique")
        self.policy, self.words, self.max_new = policy, task, max_new
        self.tokenizer = tokenizer if tokenizer.ready else tokenizer.fit(task.corpus())
        self.format = PromptFormat(self.tokenizer, chat)
        digest = getattr(policy, "tokenizer_digest", None)
        if digest not in (None, self.tokenizer.digest):
            raise ValueError(f"tokenizer: the policy means the ids of another ({digest[:12]}…); use the one it has")

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        account, done = Account(), list(judgements)
        asked = [
            (place, i)
            for place, each in enumerate(done)
            for i in range(len(each.responses))
            if each.of("critique", i) is None
        ]
        cases = [self._case(each) for each in done]
        prompts = [self.words.critique_prompt(cases[place], done[place].responses[i]) for place, i in asked]
        for (place, i), critique in zip(asked, self._said(prompts), strict=True):
            if critique and critique != self.words.praise:
                told = list(done[place].critique or [None] * len(done[place].responses))
                told[i] = critique
                done[place] = said(done[place], self.name, critique=tuple(told))
        revised = [(place, at) for place, each in enumerate(done) if (at := _criticised(each)) is not None]
        prompts = [
            self.words.revision_prompt(cases[place], done[place].responses[i], done[place].of("critique", i))
            for place, i in revised
        ]
        for (place, _), text in zip(revised, self._said(prompts), strict=True):
            if text:
                done[place] = said(done[place], self.name, expected=text)
        account.counters["calls"] += len(asked) + len(revised)
        for _ in done:
            tick()
        return done, account

    def _said(self, prompts: Sequence[PromptText]) -> list[str]:
        """The policy's likeliest reply to each."""
        writer = Writer(self.policy, self.format, (self.tokenizer.eos,))
        return [each.text for each in writer.replies([self.format.ids(prompt) for prompt in prompts], self.max_new)]


def _criticised(judgement: Judgement) -> int | None:
    """The first response that has a critique, where nobody has said what to say instead."""
    if judgement.expected is not None:
        return None
    return next((i for i in range(len(judgement.responses)) if judgement.of("critique", i) is not None), None)
