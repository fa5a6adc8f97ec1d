"""The words around a critique: what a task that has no better ones is `Revisable` with."""

from __future__ import annotations

from data_modules.text.environment import Case


class Phrases:
    """Plain words in one line, whatever the task is about."""

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
        """A text with every word of these, for a tokenizer to be made from."""
        case = Case("", "")
        said = [self.revision_prompt(case, "", ""), self.announced(True), self.announced(False)]
        return " ".join(" ".join([*said, self.praise, self.placebo]).split())
