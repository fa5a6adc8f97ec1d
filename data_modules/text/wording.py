"""Critiques as turns of a chat: what the user says before a revision, a critique, or a reply that heeds a critique."""

from __future__ import annotations

from dataclasses import dataclass, fields

from data_modules.judgements.schema import Message, PromptText
from data_modules.text.environment import Case
from data_modules.text.prompts import with_last
from data_modules.text.templates import refuse_template


@dataclass(frozen=True)
class Wording:
    """The sentences around a critique. Each is a user's turn of a chat, so an instruct model reads what it is used to.

    Args:
        revise: after a reply; `{critique}` is what was wrong with it. A better reply follows.
        criticise: after a reply. Its critique follows, or `praise`.
        condition: added to the prompt; `{critique}` is what would be said of the reply that follows.
        good, bad: added to the prompt before a reply of which this is known (chain of hindsight).
        praise: the critique of a reply with nothing wrong in it.
        placebo: a critique that fits any reply and says nothing about it, as a control.

    Raises:
        ValueError: `revise` or `condition` has no place {critique}, or another place.
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
        """All sentences, for a tokenizer to be made from."""
        return [getattr(self, each.name) for each in fields(self)]


class ChatWords:
    """What makes a task `Revisable` in turns of a chat.

    Args: wording: the sentences.
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
