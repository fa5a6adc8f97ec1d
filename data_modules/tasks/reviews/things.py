"""Subjects of reviews: things, their aspects, and adjectives for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """A subject of reviews: its aspects, two verbs and two rivals."""

    aspects: dict[str, str]  # aspect → kind of adjectives that suit it
    tried: str  # verb in the past tense, for "we … this movie"
    again: str  # verb phrase, for "i would …"
    rivals: tuple[str, str]  # things that a reviewer may have preferred


THINGS = {
    "movie": Thing(
        {"plot": "tale", "ending": "tale", "dialogue": "tale", "characters": "tale", "actors": "person",
         "music": "art"},
        "saw", "see it again", ("book", "game"),
    ),
    "book": Thing(
        {"story": "tale", "ending": "tale", "writing": "tale", "chapters": "tale", "characters": "tale",
         "cover": "art"},
        "read", "read it again", ("movie", "game"),
    ),
    "restaurant": Thing(
        {"food": "taste", "soup": "taste", "desserts": "taste", "waiter": "person", "tables": "place"},
        "tried", "go there again", ("hotel", "museum"),
    ),
    "hotel": Thing(
        {"room": "place", "bed": "place", "hall": "place", "pool": "place", "breakfast": "taste", "staff": "person"},
        "tried", "stay there again", ("restaurant", "flight"),
    ),
    "phone": Thing(
        {"screen": "device", "battery": "device", "camera": "device", "speaker": "device", "buttons": "device"},
        "bought", "buy it again", ("laptop", "game"),
    ),
    "laptop": Thing(
        {"keyboard": "device", "screen": "device", "battery": "device", "software": "device", "mouse": "device"},
        "bought", "buy it again", ("phone", "course"),
    ),
    "game": Thing(
        {"levels": "tale", "story": "tale", "graphics": "art", "music": "art", "controls": "device"},
        "played", "try it again", ("movie", "book"),
    ),
    "concert": Thing(
        {"band": "art", "singer": "art", "songs": "art", "crowd": "person", "seats": "place"},
        "saw", "go there again", ("museum", "movie"),
    ),
    "museum": Thing(
        {"paintings": "art", "statues": "art", "guide": "person", "garden": "place", "shop": "place"},
        "visited", "go there again", ("concert", "hotel"),
    ),
    "flight": Thing(
        {"seats": "place", "cabin": "place", "crew": "person", "pilot": "person", "meal": "taste"},
        "took", "fly with them again", ("hotel", "restaurant"),
    ),
    "course": Thing(
        {"teacher": "person", "lessons": "tale", "exercises": "tale", "videos": "tale"},
        "took", "take it again", ("book", "museum"),
    ),
}  # fmt: skip
COMBINATIONS = tuple((item, aspect) for item, subject in THINGS.items() for aspect in subject.aspects)
NAMES = frozenset(THINGS) | {aspect for _, aspect in COMBINATIONS}

ADJECTIVES = {  # tone → kind of aspect → adjectives; "" suits all kinds
    "good": {
        "": ("good", "great", "wonderful", "excellent", "fantastic", "lovely", "superb", "nice", "fine"),
        "tale": ("funny", "clever", "exciting", "brilliant", "interesting"),
        "person": ("kind", "friendly", "helpful", "cheerful"),
        "taste": ("delicious", "fresh"),
        "device": ("perfect", "impressive"),
        "place": ("clean", "comfortable", "beautiful", "charming"),
        "art": ("beautiful", "charming", "stunning", "amazing"),
    },
    "neutral": {
        "": ("average", "ordinary", "standard", "decent"),
        "tale": ("long", "short", "simple", "predictable"),
        "person": ("young", "quiet"),
        "taste": ("simple", "salty"),
        "device": ("small", "simple", "plain"),
        "place": ("small", "old", "modern", "plain"),
        "art": ("loud", "modern", "plain"),
    },
    "bad": {
        "": ("bad", "poor", "awful", "terrible", "horrible", "disappointing", "dreadful"),
        "tale": ("boring", "dull", "confusing"),
        "person": ("rude", "careless", "lazy"),
        "taste": ("disgusting",),
        "device": ("useless", "faulty"),
        "place": ("dirty", "ugly", "noisy"),
        "art": ("dull", "ugly", "boring"),
    },
}


def suitable(tone: str, kind: str) -> tuple[str, ...]:
    """The adjectives of this tone that suit this kind of aspect."""
    return ADJECTIVES[tone][""] + ADJECTIVES[tone][kind]


def was(aspect: str) -> str:
    return "were" if aspect.endswith("s") else "was"


def on_topic(item: str) -> frozenset[str]:
    """The names that belong to a thing: the thing's own names, and the names of its aspects."""
    return frozenset({item, *THINGS[item].aspects})
