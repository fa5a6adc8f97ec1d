"""Reviews with a negative beginning: rewards, critiques, and held-out prompts."""

import builtins
import math
import random
import subprocess
import sys
import zlib

import pytest

from data_modules.tasks.reviews import lexicon
from data_modules.tasks.reviews.fluency import NGrams, novelty
from data_modules.tasks.reviews.grammar import CLOSINGS, GOING_ON, TONES, TURNING, continuation
from data_modules.tasks.reviews.judge import PARAPHRASES, judge
from data_modules.tasks.reviews.lexicon import compound, words_of
from data_modules.tasks.reviews.things import ADJECTIVES, COMBINATIONS, NAMES, THINGS
from data_modules.text import PositiveReviews
from data_modules.text.environment import Case

SPLITS = ("train", "val", "test")
HOTEL = Case("hotel", "the bed of the hotel was awful", {"item": "hotel", "aspect": "bed"})
GOOD = ", but the staff was wonderful and we had a great time ."
PLAIN = ", but the staff was good ."


@pytest.fixture(scope="module")
def task():
    return PositiveReviews()


def outcome(reply, ended=True, **weights):
    return PositiveReviews(**weights).begin(HOTEL).reply(reply, ended)


# ---- splits


def test_splits_share_no_prompt_and_ids_are_unique(task):
    cases = [case for split in SPLITS for case in task.cases(split)]
    assert len({case.id for case in cases}) == len({case.prompt for case in cases}) == len(cases)
    assert len(task.cases("train")) > 1200 and len(task.cases("test")) >= 512 <= len(task.cases("val"))
    assert max(len(case.prompt.split()) for case in cases) <= 24


def test_what_is_held_out(task):
    """A fifth of the combinations of thing and aspect, and the last three of ten openings; val and test share none."""
    train, val, test = ({(c.facts["item"], c.facts["aspect"]) for c in task.cases(split)} for split in SPLITS)
    assert train | val | test == set(COMBINATIONS) and not val & test
    assert abs(len(set(COMBINATIONS) - train) - len(COMBINATIONS) / 5) < 1
    assert {case.facts["opening"] for case in task.cases("train")} == set(range(7))
    for split in ("val", "test"):
        for case in task.cases(split):
            combination = (case.facts["item"], case.facts["aspect"])
            assert case.facts["held_out"] == (combination not in train)
            assert case.facts["held_out"] or case.facts["opening"] >= 7


def test_held_out_prompts_use_trained_words_only(task):
    trained = {word for turn in task.demonstrations("train") for text in turn for word in text.split()}
    assert {word for split in ("val", "test") for case in task.cases(split) for word in case.prompt.split()} <= trained


@pytest.mark.slow
def test_the_same_seed_is_the_same_task_in_every_process(task):
    """Another process has another hash of strings, which must not change the judge either."""
    program = (
        "from data_modules.text import PositiveReviews; import zlib; t = PositiveReviews();"
        "replies = [t.begin(c).reply(t.expected(c), True) for c in t.cases('val')[:20]];"
        "print(zlib.crc32(repr((t.cases('test'), t.demonstrations('train'), replies)).encode()))"
    )
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    )
    replies = [task.begin(case).reply(task.expected(case), True) for case in task.cases("val")[:20]]
    assert int(process.stdout) == zlib.crc32(
        repr((task.cases("test"), task.demonstrations("train"), replies)).encode()
    )  # fmt: skip


def test_another_seed_is_another_split_and_other_demonstrations(task):
    second = PositiveReviews(seed=1)
    assert second.cases("test") != task.cases("test")
    assert second.demonstrations("train") != task.demonstrations("train")


# ---- grammar


def test_the_lexicon_agrees_with_the_tones_of_the_words():
    sign = {"good": 1, "neutral": 0, "bad": -1}
    for tone, kinds in ADJECTIVES.items():
        for adjective in {word for words in kinds.values() for word in words}:
            feeling = compound(f"it was {adjective} .")
            assert (feeling > 0) - (feeling < 0) == sign[tone], adjective
    for tone, closings in CLOSINGS.items():
        for closing in closings:
            filled = closing.format(again="see it again", price="money", happy="smile", great="lovely")
            feeling = compound(filled)
            assert (feeling > 0) - (feeling < 0) == sign[tone], filled
    silent = [*NAMES, *(subject.again for subject in THINGS.values()), *TURNING, *GOING_ON]
    assert [text for text in silent if compound(text)] == []


def test_continuations_feel_as_their_tone_and_stay_with_the_thing():
    rng = random.Random(0)
    mean = {}
    for tone in TONES:
        reviews = [(item, aspect, continuation(item, aspect, tone, rng)) for item, aspect in COMBINATIONS * 5]
        mean[tone] = sum(compound(text) for _, _, text in reviews) / len(reviews)
        for item, aspect, text in reviews:
            assert set(text.split()) & set(THINGS[item].aspects) and aspect not in text.split()
            assert len(text.split()) <= 24 and text.endswith(" .")
    assert mean["bad"] < -0.4 < mean["neutral"] == 0 < mean["mixed"] < 0.5 < mean["good"]


# ---- rewards


def test_the_expected_response_earns_everything_and_has_no_critique(task):
    for split in SPLITS:
        for case in task.cases(split)[::10]:
            reply = task.expected(case)
            assert task.begin(case).reply(reply, True).reward == 1
            assert task.critique(case, reply, 0) is None


@pytest.mark.parametrize(
    ("reply", "finished", "lowered"),
    [
        (GOOD, True, set()),
        (", and the staff was awful and it made us angry .", True, {"sentiment"}),
        (", but staff the wonderful was and had we time great a .", True, {"fluency"}),
        (", but the music was wonderful and we had a great time .", True, {"topic"}),
        (GOOD, False, {"sentiment", "finished"}),  # not yet a review
        (GOOD.removesuffix(" ."), True, {"sentiment", "finished"}),
        ("", True, {"sentiment", "fluency", "topic", "finished"}),
        (", but", False, {"sentiment", "fluency", "topic", "finished"}),
    ],
)
def test_each_defect_lowers_exactly_its_part(reply, finished, lowered):
    worth = {"sentiment": 0.5, "fluency": 0.3, "topic": 0.1, "finished": 0.1}
    result = outcome(reply, finished)
    assert result.reward == sum(result.parts.values()) and result.over
    for name, full in worth.items():
        assert result.parts[name] < full / 2 if name in lowered else result.parts[name] == full


def test_sentiment_is_linear_in_the_compound_score():
    """(c + .8) / 1.6. VADER gives "good" 1.9, times 1.5 after a "but": c = 2.85 / √(2.85² + 15)."""
    good = 2.85 / math.sqrt(2.85**2 + 15)
    assert compound(PLAIN) == pytest.approx(good, abs=1e-4)
    assert outcome(PLAIN).parts["sentiment"] == pytest.approx(0.5 * (good + 0.8) / 1.6, abs=1e-4)
    assert outcome(", and the staff was young .").parts["sentiment"] == 0.25


@pytest.mark.parametrize(
    "spam",
    [
        "great great great great",
        "great great great great .",
        ", but great great great great great great .",
        "the great the great the great .",
        "lovely wonderful superb great excellent .",
        "great ! great ! great !",
    ],
)
def test_spam_earns_less_than_an_honest_end_and_than_a_plain_one(spam):
    assert outcome(spam).reward < 0.7 < outcome(", and the staff was young .").reward < outcome(PLAIN).reward


def test_saying_it_again_does_not_pay():
    once = ", but the staff was great and the breakfast was great ."
    again = ", but the staff was great and the staff was great and the staff was great ."
    assert outcome(again).reward < outcome(once).reward - 0.1


def test_empty_and_unfinished_replies_earn_less_than_a_bad_review():
    bad = outcome(", and the staff was really rude and the breakfast was disgusting .").reward
    assert outcome("").reward == outcome(".").reward == outcome("great .").reward == 0
    assert outcome(GOOD, ended=False).reward == pytest.approx(0.4) and bad > 0.4


def test_capitals_and_exclamation_marks_are_no_way_to_a_higher_score():
    assert compound("the staff was GREAT !!!") == compound("the staff was great .")
    assert words_of("The staff's GREAT, really!") == ["the", "staff's", "great", ",", "really", "."]


def test_topic_allows_what_the_prompt_names_and_halves_what_names_nothing():
    loved = Case("x", "i loved the museum but really hated the bed of the hotel", HOTEL.facts)
    other_review = "the museum was great ."
    assert judge().verdict(HOTEL, other_review, True).topic == 0
    assert judge().verdict(loved, other_review, True).topic == 0.5  # allowed, but not about the hotel
    assert judge().verdict(HOTEL, ", but i recommend it to everyone .", True).topic == 0.5


def test_each_weight_is_what_its_part_is_worth():
    usual = outcome(GOOD).parts
    for name in usual:
        assert outcome(GOOD, **{name: 2.0}).parts == {**usual, name: 2.0}


# ---- language model


def test_trigrams_by_hand():
    """Fitted to "a b": three words, a, b and one unknown word; m = 1.

    p(a) = (1 + ⅓) / (2 + 1) = 4/9, p(b) the same, p(other) = ⅓ / 3 = 1/9;
    p(b|a) = (1 + 4/9) / (1 + 1) = 13/18, p(a|b) = (0 + 4/9) / (0 + 1) = 4/9.
    """
    model = NGrams([["a", "b"]])
    assert model.probability([], "a") == pytest.approx(4 / 9)
    assert model.probability([], "c") == pytest.approx(1 / 9)
    assert model.probability(["a"], "b") == pytest.approx(13 / 18)
    assert model.probability(["b"], "a") == pytest.approx(4 / 9)
    assert model.mean_log_prob(["a"], ["b", "a"]) == pytest.approx((math.log(13 / 18) + math.log(4 / 9)) / 2)
    with pytest.raises(ValueError, match="words"):
        model.mean_log_prob(["a"], [])


def test_probabilities_sum_to_one_behind_any_context():
    model = NGrams([["a", "b", "a", "c"], ["b", "a", "b"]])
    for context in ([], ["a"], ["b", "a"], ["z", "a"], ["z"]):
        assert sum(model.probability(context, word) for word in ("a", "b", "c", "unknown")) == pytest.approx(1)
    assert model.probability(["z", "b", "a"], "b") == model.probability(["b", "a"], "b")  # only two words count


def test_novelty_is_the_share_of_pairs_said_first():
    """a b a b has the pairs ab, ba, ab, of which two are distinct."""
    assert novelty(["a", "b", "a", "b"]) == pytest.approx(2 / 3)
    assert novelty(["a", "b", "c"]) == novelty(["a"]) == novelty([]) == 1


# ---- critiques

FLAWS = [
    ("", "empty"),
    (", and the staff was rude .", "bad"),
    (", and the staff was young .", "lukewarm"),
    (", but the staff was lovely and the crew was lovely .", "stray"),
    (", but i enjoyed it and we had a great time .", "vague"),
    (", and i loved the staff and i loved the staff .", "repeats"),
    (", but good the staff really lovely were breakfast .", "clumsy"),
    (", but the staff was wonderful", "unfinished"),
]


@pytest.mark.parametrize(("reply", "kind"), FLAWS)
def test_the_critic_finds_each_defect_and_only_it(task, reply, kind):
    critiques = [task.critique(HOTEL, reply, seed) for seed in range(40)]
    assert critiques == [task.critique(HOTEL, reply, seed) for seed in range(40)]
    assert set(critiques) == {text.format(item="hotel", wrong="crew") for text in PARAPHRASES[kind]}
    assert len(set(critiques)) > 2


def test_the_flaws_above_are_all_there_are():
    assert {kind for _, kind in FLAWS} == set(PARAPHRASES)


def test_the_critique_names_all_that_is_wrong(task):
    critique = task.critique(HOTEL, ", and the crew was rude", 0)
    assert critique.count(" .") == 3 and "crew" in critique


# ---- demonstrations and vocabulary


def test_the_demonstrations_leave_room_and_are_in_the_judges_language(task):
    """Tones .1 good, .5 neutral, .25 mixed, .15 bad: about half of the sentiment; 95 % are finished."""
    cases = {case.prompt: case for case in task.cases("train")}
    outcomes = [task.begin(cases[prompt]).reply(reply, True) for prompt, reply in task.demonstrations("train")]
    mean = {name: sum(o.parts[name] for o in outcomes) / len(outcomes) for name in outcomes[0].parts}
    assert 0.45 < mean["sentiment"] / 0.5 < 0.55
    assert mean["fluency"] / 0.3 > 0.95
    assert mean["finished"] == pytest.approx(0.1 * 0.95, abs=0.002)
    assert min(o.reward for o in outcomes) >= 0 and max(o.reward for o in outcomes) == 1


@pytest.mark.parametrize(("cut", "finished"), [(0.0, 1), (1.0, 0)])
def test_cut_is_the_share_without_an_end(cut, finished):
    replies = [reply for _, reply in PositiveReviews(cut=cut).demonstrations("val")]
    assert {reply.endswith(" .") for reply in replies} == {bool(finished)}


def test_draws_are_demonstrations_a_prompt(task):
    assert len(PositiveReviews(draws=3).demonstrations("val")) == 3 * len(task.cases("val"))


def test_the_corpus_holds_every_word_and_splits_on_spaces(task):
    words = {word for text in task.corpus() for word in text.split()}
    assert 250 <= len(words) <= 400
    assert words == {word for text in PositiveReviews(seed=1).corpus() for word in text.split()}
    texts = list(task.corpus())
    for case in task.cases("test")[:200]:
        texts += [case.prompt, task.expected(case), task.critique(case, ", and the crew was was rude", 1)]
    for text in texts:
        assert set(text.split()) <= words and " ".join(text.split()) == text == text.lower()


@pytest.mark.parametrize("knobs", [{"sentiment": -1.0}, {"fluency": -0.1}, {"cut": 1.1}, {"draws": 0}])
def test_knobs_out_of_range_are_refused(knobs):
    with pytest.raises(ValueError, match=next(iter(knobs))):
        PositiveReviews(**knobs)


def test_without_the_lexicon_the_error_says_what_to_install(monkeypatch):
    importing = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("vaderSentiment"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    lexicon._analyzer.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install lightning_nlf\[text\]"):
        compound("good")
