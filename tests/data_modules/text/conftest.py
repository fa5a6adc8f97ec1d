"""Two small tasks, one with a single turn and one with several."""

from dataclasses import dataclass

import pytest

from data_modules.text.environment import Case, Outcome

WORDS = ("ant", "bee", "cow", "dog", "elk", "fox")


@dataclass
class Once:
    word: str

    def reply(self, text, finished):
        right, ended = float(text == self.word), 0.25 * finished
        return Outcome(right + ended, {"right": right, "ended": ended})


@dataclass
class Echo:
    """One turn: repeat the word. The reward is 1 for the word and .25 for a reply that is not cut off."""

    turns = 1

    def cases(self, split):
        words = WORDS[:4] if split == "train" else WORDS[4:]
        return [Case(f"{split}-{word}", f"say {word}", {"word": word}) for word in words]

    def begin(self, case):
        return Once(case.facts["word"])

    def corpus(self):
        yield "say 0 1 2 3 more " + " ".join(WORDS)

    def demonstrations(self, split):
        return [(case.prompt, case.facts["word"]) for case in self.cases(split)]

    def expected(self, case):
        return case.facts["word"]

    def critique(self, case, reply, seed):
        return None


@dataclass
class Walk:
    left: int

    def reply(self, text, finished):
        self.left -= 1
        return Outcome(float("ant" in text.split()), text=f"{self.left} more", over=self.left == 0)


@dataclass
class Walks(Echo):
    """As many turns as the prompt says; the reward is 1 for each reply with an ant in it."""

    turns = 3

    def cases(self, split):
        return [Case(f"{split}-{n}", f"{n} more", {"left": n}) for n in (1, 2, 3)]

    def begin(self, case):
        return Walk(case.facts["left"])

    def expected(self, case):
        return None


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def walks():
    return Walks()
