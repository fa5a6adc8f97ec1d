"""Read the claims in a reply: foods, nutrients, levels, comparisons and sources, each with its span."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from data_modules.tasks.answers.table import FOODS, NUTRIENTS, singular

FOOD_OF = {name: food for food in FOODS for name in (food, singular(food))}
LEVELS = dict.fromkeys(("high", "rich", "lot", "lots", "plenty", "much", "abundant"), "high") | dict.fromkeys(
    ("low", "poor", "little", "lacking"), "low"
)
MORE = dict.fromkeys(("more", "higher", "richer", "most", "highest", "richest"), True) | dict.fromkeys(
    ("less", "lower", "fewer", "poorer", "least", "lowest"), False
)
NEGATIONS = ("not", "never", "nor", "neither", "hardly", "isn't", "aren't", "doesn't", "don't", "cannot", "can't")
TRUSTED = (("usda",), ("mayo", "clinic"), ("nih",))
UNTRUSTED = {
    "blog": "a blog", "blogs": "a blog", "forum": "a forum", "forums": "a forum", "uncle": "my uncle",
    "friend": "a friend", "advert": "an advert", "wikipedia": "wikipedia", "reddit": "reddit", "facebook": "facebook",
    "tiktok": "tiktok",
}  # fmt: skip
CITED_BEFORE = ("according", "per", "source", "sources", "by", "from", "says", "say", "cites", "see", "via")
CITED_AFTER = ("says", "say", "reports", "states", "shows", "lists", "notes")
NEGATED, CITED = 3, 6  # maximum distance in words from a negation, or a citing word, to the word that it refers to
STOPS = frozenset(".!?;")

Span = tuple[int, int]  # characters


@dataclass(frozen=True)
class Word:
    """A word of a reply, and the characters at which it stands."""

    text: str
    span: Span


class Reading:
    """The words of a reply, ignoring case and spacing. The span of a claim is the span of its word."""

    def __init__(self, reply: str) -> None:
        matches = re.finditer(r"[^\W_]+(?:['’][^\W_]+)*|[.!?,;:]", reply)
        self.words = [Word(match[0].lower().replace("’", "'"), match.span()) for match in matches]

    def foods(self) -> dict[str, Span]:
        """The foods in order of first mention; a food after "besides" does not count."""
        spans: dict[str, Span] = {}
        for place, word in enumerate(self.words):
            food = FOOD_OF.get(word.text)
            if food and not self._near(place, ("besides",), 1):
                spans.setdefault(food, word.span)
        return spans

    def nutrients(self) -> dict[str, Span]:
        spans: dict[str, Span] = {}
        for word in self.words:
            if word.text in NUTRIENTS:
                spans.setdefault(word.text, word.span)
        return spans

    def levels(self) -> dict[str, Span]:
        """The claimed levels, `high` or `low`; "not high" counts as low."""
        claimed: dict[str, Span] = {}
        for place, word in enumerate(self.words):
            if word.text in LEVELS and not self._near(place, ("how",), 1):
                flipped = self._near(place, NEGATIONS, NEGATED)
                level = LEVELS[word.text]
                claimed.setdefault({"high": "low", "low": "high"}[level] if flipped else level, word.span)
        return claimed

    def winners(self, first: str, second: str) -> dict[str, Span]:
        """The food that is claimed to have more: y in "x has less than y" and in "there is more in y than in x"."""
        claimed: dict[str, Span] = {}
        for place, word in enumerate(self.words):
            if word.text not in MORE:
                continue
            subject = self._subject(place, (first, second))
            if subject:
                rival = second if subject == first else first
                has_more = MORE[word.text] != self._near(place, NEGATIONS, NEGATED)
                claimed.setdefault(subject if has_more else rival, word.span)
        return claimed

    def _subject(self, comparative: int, foods: tuple[str, str]) -> str | None:
        """The subject of a comparison: the last food before it in the sentence, else the first one after it."""
        before = self._until_stop(range(comparative - 1, -1, -1))
        after = self._until_stop(range(comparative + 1, len(self.words)))
        for words in (before, after):
            names = (FOOD_OF.get(word.text) for word in words)
            subject = next((food for food in names if food in foods), None)
            if subject:
                return subject
        return None

    def _until_stop(self, places: range) -> Iterator[Word]:
        for place in places:
            if self.words[place].text in STOPS:
                return
            yield self.words[place]

    def trusted(self) -> bool:
        """Whether a trusted source is cited; a mere mention does not count."""
        texts = [word.text for word in self.words]
        for name in TRUSTED:
            for place in range(len(texts) - len(name) + 1):
                if tuple(texts[place : place + len(name)]) != name:
                    continue
                if self._near(place, NEGATIONS, NEGATED + 1):  # not according to the
                    continue
                end = place + len(name)
                if self._near(place, CITED_BEFORE, CITED) or any(text in CITED_AFTER for text in texts[end : end + 2]):
                    return True
        return False

    def untrusted(self) -> dict[str, Span]:
        """Untrusted sources that are cited or mentioned."""
        return {UNTRUSTED[word.text]: word.span for word in self.words if word.text in UNTRUSTED}

    def _near(self, place: int, texts: Collection[str], before: int) -> bool:
        """Whether one of `texts` is among the last `before` words before `place`, without a stop or comma between."""
        for word in reversed(self.words[max(place - before, 0) : place]):
            if word.text in STOPS | {","}:
                return False
            if word.text in texts:
                return True
        return False
