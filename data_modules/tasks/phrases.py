"""Prompt texts around a critique, in plain words, which make a task `Revisable`."""

from __future__ import annotations

from data_modules.text.environment import Case


class Phrases:
    """Base for tasks that makes them `Revisable`, with prompts of plain words on one line."""

    praise = "nothing is wrong ."
    placebo = "please try again ."

    def revision_prompt(self, case: Case, reply: str, critique: str) -> str:
        return f"{case.text} answer : {reply} critique : {critique} revision :"

    def critique_prompt(self, case: Case, reply: str) -> str:
        return f"{case.text} answer : {reply} critique :"

    def conditioned_prompt(self, case: Case, critique: str) -> str:
        return f"{case.text} critique : {critique} answer :"

    def announced(self, good: bool) -> str:
        return " good answer :" if good else " bad answer :"

    def words(self) -> str:
        """A text with every word of these prompts, to build a tokenizer from."""
        case = Case("", "")
        texts = [self.revision_prompt(case, "", ""), self.announced(True), self.announced(False)]
        return " ".join(" ".join([*texts, self.praise, self.placebo]).split())
