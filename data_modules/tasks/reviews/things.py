"""What is reviewed: things, their aspects, and the adjectives that suit them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    aspects: dict[str, str]  # aspect: the kind of adjectives that suit it
    tried: str  # what one did with it
    again: str  # what one would do with it again
    others: tuple[str, str]  # things one may have loved instead


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
COMBINATIONS = tuple((item, aspect) for item, thing in THINGS.items() for aspect in thing.aspects)
NAMES = frozenset(THINGS) | {aspect for _, aspect in COMBINATIONS}

ADJECTIVES = {  # by tone, then by kind of aspect; "" suits all
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
    """Adjectives of a tone for an aspect of a kind."""
    return ADJECTIVES[tone][""] + ADJECTIVES[tone][kind]


def was(aspect: str) -> str:
    return "were" if aspect.endswith("s") else "was"


def on_topic(item: str) -> frozenset[str]:
    """The names that belong to a thing."""
    return frozenset({item, *THINGS[item].aspects})
