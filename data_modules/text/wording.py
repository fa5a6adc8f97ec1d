"""Texts around critiques as turns of a chat: messages that ask for a revision, a critique, or a good or bad reply."""

from __future__ import annotations

from dataclasses import dataclass, fields

from data_modules.judgements.schema import Message, PromptText
from data_modules.text.environment import Case
from data_modules.text.prompts import with_last
from data_modules.text.templates import refuse_template


@dataclass(frozen=True)
class Wording:
    """Texts around a critique. Each text is a user's turn of a chat, the format that instruct models are trained on.

    Args:
        revise: message after a reply that asks for a better reply; `{critique}` stands for the critique of the reply.
        criticise: message after a reply that asks for a critique, or for `praise` if the reply has no errors.
        condition: text added to the prompt; `{critique}` stands for the critique that the next reply will deserve.
        good, bad: text added to the prompt before a reply that is known to be good or bad (chain of hindsight).
        praise: the critique of a reply without errors.
        placebo: a critique that fits any reply and says nothing about it, as a control.

    Raises:
        ValueError: `revise` or `condition` lacks the placeholder `{critique}`, or a text has an unknown placeholder.
    """

    revise: str = "That is not right yet. {critique}\nPlease answer again, and give only the new answer."
    criticise: str = (
        "What is wrong with this answer, or missing from it? Say it in one or two sentences. "
        "If it is fine as it is, say only: {praise}"
    )
    condition: str = "\n\n(A reader will say about the answer: {critique})"
    good: str = "\n\n(Give a good answer.)"
    bad: str = "\n\n(Give a bad answer.)"
    praise: str = "Nothing is wrong."
    placebo: str = "Please try again."

    def __post_init__(self) -> None:
        for name in ("revise", "condition"):
            refuse_template(f"wording.{name}", getattr(self, name), ("critique",))
        refuse_template("wording.criticise", self.criticise, (), ("praise",))

    def revision_prompt(self, prompt: PromptText, reply: str, critique: str) -> PromptText:
        """[…, user x, assistant y, user "what was wrong: c"]"""
        return (*_chat(prompt), Message("assistant", reply), Message("user", self.revise.format(critique=critique)))

    def critique_prompt(self, prompt: PromptText, reply: str) -> PromptText:
        """[…, user x, assistant y, user "what is wrong with it?"]"""
        question = self.criticise.format(praise=self.praise)
        return (*_chat(prompt), Message("assistant", reply), Message("user", question))

    def conditioned_prompt(self, prompt: PromptText, critique: str) -> PromptText:
        """[…, user x + "a reader will say: c"]"""
        return with_last(prompt, lambda text: text + self.condition.format(critique=critique))

    def announced(self, good: bool) -> str:
        return self.good if good else self.bad

    def texts(self) -> list[str]:
        """All texts, to build a tokenizer from."""
        return [getattr(self, field.name) for field in fields(self)]


class ChatWords:
    """Base for tasks that makes them `Revisable`, with critiques as turns of a chat.

    Args: wording: the texts around a critique.
    """

    def __init__(self, wording: Wording) -> None:
        self.wording, self.praise, self.placebo = wording, wording.praise, wording.placebo

    def revision_prompt(self, case: Case, reply: str, critique: str) -> PromptText:
        return self.wording.revision_prompt(case.prompt, reply, critique)

    def critique_prompt(self, case: Case, reply: str) -> PromptText:
        return self.wording.critique_prompt(case.prompt, reply)

    def conditioned_prompt(self, case: Case, critique: str) -> PromptText:
        return self.wording.conditioned_prompt(case.prompt, critique)

    def announced(self, good: bool) -> str:
        return self.wording.announced(good)


def _chat(prompt: PromptText) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt
