"""Questions about foods: rewards, critiques, and held-out questions."""

import re
import subprocess
import sys
import zlib
from collections import Counter

import pytest

from data_modules.tasks.answers.judge import PARAPHRASES
from data_modules.tasks.answers.table import FOODS, GROUPS, HIGH, NUTRIENTS, figure, level, singular
from data_modules.text import SourcedAnswers
from data_modules.text.environment import Case

SPLITS = ("train", "val", "test")
SPINACH = Case(
    "spinach",
    "is spinach high or low in iron ?",
    {"kind": "level", "nutrient": "iron", "foods": ("spinach",), "right": "high"},
)
RICE = Case("rice", "", {"kind": "level", "nutrient": "iron", "foods": ("rice",), "right": "low"})
PAIR = Case(
    "pair",
    "which has more iron , rice or lentils ?",
    {"kind": "pair", "nutrient": "iron", "foods": ("rice", "lentils"), "right": "lentils"},
)
FRUITS = Case(
    "fruits",
    "name two fruits high in fiber besides figs .",
    {
        "kind": "list", "nutrient": "fiber", "group": "fruits", "besides": "figs",
        "right": ("raspberries", "prunes", "avocados"),
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return SourcedAnswers()


def parts(case, reply, finished=True, task=SourcedAnswers()):  # noqa: B008
    outcome = task.begin(case).reply(reply, finished)
    assert outcome.reward == sum(outcome.parts.values()) and outcome.over
    return outcome.parts


def facts(case, reply):
    """The share of right facts; they are worth a half."""
    return parts(case, reply)["facts"] / 0.5


# ---- table and splits


def test_the_table_is_whole():
    """Forty foods; both levels of every nutrient; some well-known figures."""
    assert len(FOODS) == 40 == sum(map(len, GROUPS.values())) and len(NUTRIENTS) == 6
    for nutrient in NUTRIENTS:
        assert {level(food, nutrient) for food in FOODS} == {"high", "low"}
    assert figure("lentils", "fiber") == 7.9 and figure("milk", "calcium") == 113
    assert level("spinach", "iron") == "high" and level("rice", "iron") == "low"
    assert figure("figs", "iron") == HIGH["iron"] and level("figs", "iron") == "high"  # the limit itself is high
    assert [singular(food) for food in ("raspberries", "tomatoes", "oats", "rice")] == [
        "raspberry", "tomato", "oat", "rice",
    ]  # fmt: skip


def test_splits_share_no_prompt_and_ids_are_unique(task):
    cases = [case for split in SPLITS for case in task.cases(split)]
    assert len({case.id for case in cases}) == len({case.prompt for case in cases}) == len(cases)
    assert [len(task.cases(split)) for split in SPLITS] == [1936, 628, 628]
    assert max(len(case.prompt.split()) for case in cases) <= 14


def fact_of(case):
    foods = case.facts.get("foods") or (case.facts["group"], case.facts["besides"])
    return (case.facts["kind"], case.facts["nutrient"], *foods)


def test_what_is_held_out(task):
    """A fifth of the comparisons, and two of six wordings; validation and test share no fact."""
    train, val, test = ({fact_of(case) for case in task.cases(split)} for split in SPLITS)
    assert not val & test
    for kind, count, held_out in (("level", 240, 0), ("pair", 240, 48), ("list", 52, 0)):
        facts = {fact for fact in train | val | test if fact[0] == kind}
        assert len(facts) == count
        assert len(facts - train) == held_out
    for split in ("val", "test"):
        held_out = {fact_of(case) for case in task.cases(split) if case.facts["held_out"]}
        assert held_out and not held_out & train
        assert all(case.facts["held_out"] or case.facts["wording"] in (4, 5) for case in task.cases(split))
    assert {case.facts["wording"] for case in task.cases("train")} == {0, 1, 2, 3}


def test_held_out_prompts_use_trained_words_only(task):
    trained = {word for turn in task.demonstrations("train") for text in turn for word in text.split()}
    held_out = {word for split in ("val", "test") for case in task.cases(split) for word in case.prompt.split()}
    assert held_out <= trained


def test_comparisons_are_of_a_high_food_with_a_low_one_and_either_comes_first(task):
    first = Counter()
    for case in task.cases("train"):
        if case.facts["kind"] == "pair":
            higher = case.facts["right"]
            less = next(food for food in case.facts["foods"] if food != higher)
            nutrient = case.facts["nutrient"]
            assert (level(higher, nutrient), level(less, nutrient)) == ("high", "low")
            first[case.facts["foods"][0] == higher] += 1
    assert 0.4 < first[True] / first.total() < 0.6


@pytest.mark.slow
def test_the_same_seed_is_the_same_task_in_every_process(task):
    """Another process has another hash of strings."""
    program = (
        "from data_modules.text import SourcedAnswers; import zlib; t = SourcedAnswers();"
        "print(zlib.crc32(repr((t.cases('test'), t.demonstrations('train'))).encode()))"
    )
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    )
    digest = zlib.crc32(repr((task.cases("test"), task.demonstrations("train"))).encode())
    assert int(process.stdout) == digest


def test_another_seed_is_another_split_and_other_demonstrations(task):
    second = SourcedAnswers(seed=1)
    assert second.cases("test") != task.cases("test")
    assert second.demonstrations("train") != task.demonstrations("train")


# ---- rewards


def test_the_expected_response_earns_everything_and_has_no_critique(task):
    for split in SPLITS:
        for case in task.cases(split):
            reply = task.expected(case)
            assert task.begin(case).reply(reply, True).reward == 1
            assert task.critique(case, reply, 0) is None and task.spans(case, reply) == []
            assert len(reply.split()) <= 24


GOOD = "according to the usda , spinach is high in iron ."


@pytest.mark.parametrize(
    ("reply", "finished", "lowered"),
    [
        (GOOD, True, set()),
        ("according to the usda , spinach is low in iron .", True, {"facts"}),
        ("according to the usda , kale is high in iron .", True, {"facts"}),
        ("according to the usda , spinach is high in fiber .", True, {"facts"}),
        ("spinach is high in iron .", True, {"source"}),
        ("according to a blog , spinach is high in iron .", True, {"source"}),
        ("according to the usda and a blog , spinach is high in iron .", True, {"source"}),
        ("according to the usda , spinach is high in iron", True, {"finished"}),
        (GOOD, False, {"finished"}),
        ("according to the usda .", True, {"facts", "source"}),  # a source without a claim
        ("", True, {"facts", "source", "finished"}),
        (".", True, {"facts", "source", "finished"}),
    ],
)
def test_each_defect_lowers_exactly_its_part(reply, finished, lowered):
    worth = {"facts": 0.5, "source": 0.4, "finished": 0.1}
    assert parts(SPINACH, reply, finished) == {name: 0 if name in lowered else worth[name] for name in worth}


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("  SPINACH is   High in IRON.", 1),
        ("spinach spinach is high high in iron .", 1),  # a repetition counts once
        ("spinach is rich in iron .", 1),
        ("spinach is not low in iron .", 1),
        ("spinach is not high in iron .", 0),
        ("spinach is high in iron . spinach is low in iron .", 0),
        ("spinach is high or low in iron .", 0),
        ("spinach and kale are high in iron .", 0),
        ("spinach is high in iron and fiber .", 0),
        ("it is high in iron .", 0),  # no food
        ("how much iron is in rice ?", 0),
    ],
)
def test_levels_are_read_with_care(reply, share):
    assert facts(SPINACH, reply) == share


def test_low_is_as_good_an_answer_where_it_is_right():
    assert facts(RICE, "rice is low in iron .") == facts(RICE, "rice does not have a lot of iron .") == 1
    assert facts(RICE, "rice is high in iron .") == 0
    assert facts(RICE, "how much iron is in rice ? rice is low .") == 1  # repeating the question claims nothing


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("lentils have more iron than rice .", 1),
        ("Rice has less iron than a lentil.", 1),
        ("there is more iron in lentils than in rice .", 1),
        ("compared to rice , lentils are higher in iron .", 1),
        ("rice does not have more iron than lentils .", 1),
        ("rice has more iron than lentils .", 0),
        ("there is more iron in rice than in lentils .", 0),
        ("lentils have more iron than rice . rice has more iron than lentils .", 0),
        ("lentils have more iron than rice has more iron than lentils", 0),
        ("lentils have more iron than beef .", 0),
        ("lentils and rice have iron .", 0),
        ("more iron .", 0),
    ],
)
def test_comparisons_are_read_with_care(reply, share):
    assert facts(PAIR, reply) == share


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("prunes and avocados are high in fiber .", 1),
        ("besides figs , prunes and raspberries are high in fiber .", 1),
        ("prunes and avocados and raspberries are high in fiber .", 1),
        ("prunes are high in fiber .", 1 / 2),
        ("prunes and prunes are high in fiber .", 1 / 2),
        ("prunes and grapes are high in fiber .", 1 / 2),
        ("figs and prunes are high in fiber .", 1 / 2),
        ("prunes , raspberries and lentils are high in fiber .", 2 / 3),
        (" ".join(FOODS) + " are high in fiber .", 3 / 40),
        ("prunes and avocados are low in fiber .", 0),
        ("prunes and avocados are high in sugar .", 0),
        ("prunes and avocados .", 0),
    ],
)
def test_lists_pay_the_share_of_the_named_foods_that_are_right(reply, share):
    assert facts(FRUITS, reply) == pytest.approx(share)


@pytest.mark.parametrize(
    ("reply", "trusted"),
    [
        ("As per the USDA Nutrient Database, spinach is high in iron.", True),
        ("spinach is high in iron , says mayo clinic .", True),
        ("the nih says that spinach is high in iron .", True),
        ("spinach is high in iron ( source : usda ) .", True),
        ("not according to the usda , spinach is high in iron .", False),
        ("usda usda usda spinach is high in iron .", False),
        ("spinach is high in iron , says clinic mayo .", False),
        ("according to the usda , spinach is high in iron , says reddit .", False),
    ],
)
def test_a_source_counts_where_it_is_cited(reply, trusted):
    assert parts(SPINACH, reply)["source"] == (0.4 if trusted else 0)


# ---- critiques

FLAWS = [
    (SPINACH, "according to the usda , who knows .", "answer", None),
    (SPINACH, "the usda says that kale is high in iron .", "food", "kale"),
    (SPINACH, "the usda says that spinach is high in sugar .", "nutrient", "sugar"),
    (SPINACH, "the usda says that spinach is high and low in iron .", "contradiction", "low"),
    (SPINACH, "the usda says that spinach is low in iron .", "level", "low"),
    (PAIR, "the usda says that rice has more iron than lentils .", "pair", "more"),
    (FRUITS, "the usda says that prunes and grapes are high in fiber .", "low", "grapes"),
    (FRUITS, "the usda says that prunes and lentils are high in fiber .", "food", "lentils"),
    (FRUITS, "the usda says that figs and prunes are high in fiber .", "food", "figs"),
    (FRUITS, "the usda says that prunes are high in fiber .", "two", None),
    (SPINACH, "spinach is high in iron .", "source", None),
    (SPINACH, "my uncle says that spinach is high in iron .", "untrusted", "uncle"),
    (SPINACH, "the usda says that spinach is high in iron", "unfinished", ""),
]


@pytest.mark.parametrize(("case", "reply", "kind", "pointed"), FLAWS)
def test_the_critic_finds_each_defect_and_only_it(task, case, reply, kind, pointed):
    critiques = [task.critique(case, reply, seed) for seed in range(40)]
    assert critiques == [task.critique(case, reply, seed) for seed in range(40)]
    assert len(set(critiques)) == len(PARAPHRASES[kind]) == 4
    unrelated = {text for name, texts in PARAPHRASES.items() if name != kind for text in texts if "{" not in text}
    assert not set(critiques) & unrelated and all("{" not in text for text in critiques)
    assert [reply[slice(*span)] for span in task.spans(case, reply)] == ([] if pointed is None else [pointed])


def test_the_flaws_above_are_all_there_are():
    assert {kind for _, _, kind, _ in FLAWS} == set(PARAPHRASES)


def test_the_critique_names_all_that_is_wrong_and_agrees_in_number(task):
    reply = "my uncle says that spinach is low in iron"
    assert task.critique(SPINACH, reply, 0).count(" .") == 3
    assert {reply[slice(*span)] for span in task.spans(SPINACH, reply)} == {"low", "uncle", ""}
    critiques = {
        task.critique(PAIR, "the usda says that rice has more iron than lentils .", seed) for seed in range(40)
    }
    assert "that is wrong , lentils have more iron ." in critiques
    assert "rice does not have more iron than lentils ." in critiques


def test_spans_are_of_the_reply_as_it_was_written(task):
    reply = "Per the USDA:  KALE is high in iron."
    assert [reply[slice(*span)] for span in task.spans(SPINACH, reply)] == ["KALE"]


# ---- demonstrations


def rewards(task, split="train"):
    cases = {case.prompt: case for case in task.cases(split)}
    outcomes = [task.begin(cases[prompt]).reply(reply, True) for prompt, reply in task.demonstrations(split)]
    return {name: sum(o.parts[name] for o in outcomes) / len(outcomes) for name in outcomes[0].parts}


def test_the_demonstrations_leave_room(task):
    """Level facts are right with .6 + .4 · .2 = .68, comparisons too; 15 % have a source; 92 % are finished; some cut
    replies also lose their facts."""
    mean = rewards(task)
    assert 0.4 < sum(mean.values()) < 0.5
    assert 0.5 * 0.68 * 0.9 < mean["facts"] < 0.5 * 0.70
    assert mean["source"] == pytest.approx(0.4 * 0.15, abs=0.015)
    assert mean["finished"] == pytest.approx(0.1 * 0.92, abs=0.003)
    assert max(len(reply.split()) for _, reply in task.demonstrations("train")) <= 24


@pytest.mark.parametrize(
    ("knobs", "part", "worth"),
    [
        ({"misconceived": 0.0, "cut": 0.0}, "facts", 0.5),
        ({"misconceived": 1.0, "misconceived_right": 1.0, "cut": 0.0}, "facts", 0.5),
        ({"trusted": 1.0, "untrusted": 0.0, "cut": 0.0}, "source", 0.4),
        ({"trusted": 0.0, "untrusted": 1.0}, "source", 0.0),
        ({"cut": 0.0}, "finished", 0.1),
        ({"cut": 1.0}, "finished", 0.0),
    ],
)
def test_every_share_can_be_turned_all_the_way(knobs, part, worth):
    assert rewards(SourcedAnswers(**knobs))[part] == pytest.approx(worth)


def test_a_speaker_all_of_whose_levels_are_wrong():
    """All levels are misconceived and never right: no level, comparison or listed food can be right, except in groups
    that have no low food left to take for a high one."""
    task = SourcedAnswers(misconceived=1.0, misconceived_right=0.0, cut=0.0)
    cases = {case.prompt: case for case in task.cases("train")}
    for prompt, reply in task.demonstrations("train"):
        if cases[prompt].facts["kind"] != "list":
            assert task.begin(cases[prompt]).reply(reply, True).parts["facts"] == 0


LEVEL = re.compile(r"(?<!not )\b(high|low)\b")


def second_turns(task):
    """Question, attempt, critique and revision of each."""
    for prompt, reply in task.demonstrations("train"):
        if prompt.endswith("revision :"):
            question, rest = prompt.removesuffix(" revision :").split(" answer : ")
            yield question, *rest.split(" critique : "), reply


def test_second_turns_are_of_flawed_answers_alone(task):
    """`revisions` is .5, but the few attempts that are already right stay first turns; with 0 there are none."""
    demonstrations = SourcedAnswers(revisions=0.5).demonstrations("train")
    revised = [prompt for prompt, _ in demonstrations if prompt.endswith("revision :")]
    assert 0.4 < len(revised) / len(demonstrations) < 0.5
    assert max(len(prompt.split()) for prompt in revised) <= 64
    assert not list(second_turns(task))


MORE = re.compile(r"not have more \w+ than (\w+)|\b(?!not )(\w+) (?:ha(?:s|ve) more|(?:is|are) higher)")
NAMED = re.compile(r"not high in \w+ , (\w+)|, (\w+) (?:is|are) high|no , (\w+) |high in (\w+) , not")


def test_second_turns_heed_the_critique():
    """The answer has the level, the food with more, or the food to name that the critique gives."""
    heeded = dict.fromkeys(("level", "pair", "list"), 0)
    for question, _, critique, reply in second_turns(SourcedAnswers(revisions=1.0)):
        if " two " in question:
            if match := NAMED.search(critique):
                assert match[match.lastindex] in reply.split()
                heeded["list"] += 1
        elif match := MORE.search(critique):
            food = match[match.lastindex]
            assert re.search(rf"\b{food} (?:ha(?:s|ve) more|(?:is|are) higher)|in {food} than", reply)
            heeded["pair"] += 1
        elif stated := LEVEL.search(critique):
            assert stated[1] == LEVEL.search(reply)[1]
            heeded["level"] += 1
    assert min(heeded.values()) > 50


def test_second_turns_are_about_any_foods_and_facts_as_chance_has_it(task):
    """Half of n levels of a food that is really high are high: within 4 standard deviations, 2/√n. No question is a
    held-out one.
    """
    held_out = {case.prompt for split in ("val", "test") for case in task.cases(split)}
    high = []
    for question, _, _, reply in second_turns(SourcedAnswers(revisions=1.0)):
        assert question not in held_out
        foods = [food for food in FOODS if food in question.split()]
        nutrient = next(name for name in NUTRIENTS if name in question.split())
        if len(foods) == 1 and (stated := LEVEL.search(reply)) and level(foods[0], nutrient) == "high":
            high.append(stated[1] == "high")
    assert len(high) > 100 and abs(sum(high) / len(high) - 0.5) < 2 / len(high) ** 0.5


def test_draws_are_demonstrations_a_prompt():
    assert [len(SourcedAnswers(draws=draws).demonstrations("train")) for draws in (1, 3)] == [1936, 5808]


# ---- vocabulary


def test_the_corpus_holds_every_word_and_splits_on_spaces(task):
    words = {word for text in task.corpus() for word in text.split()}
    assert len(words) <= 150
    assert words == {word for text in SourcedAnswers(seed=1).corpus() for word in text.split()}
    texts = list(task.corpus())
    for case in task.cases("test"):
        texts += [case.prompt, task.expected(case)]
    for prompt, reply in SourcedAnswers(seed=2, revisions=1.0).demonstrations("val"):
        texts += [prompt, reply]
    for text in texts:
        assert set(text.split()) <= words and " ".join(text.split()) == text == text.lower()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"misconceived": 1.5}, "misconceived"),
        ({"cut": -0.1}, "cut"),
        ({"trusted": 0.6, "untrusted": 0.6}, "trusted"),
        ({"draws": 0}, "draws"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        SourcedAnswers(**knobs)
