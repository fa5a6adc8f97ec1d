"""Feedback files: reading inverts writing, and errors are listed by line."""

import json
import random
from dataclasses import replace

import pytest

from data_modules.judgements.files import read, read_all, write
from data_modules.judgements.ranking import format_ranking
from data_modules.judgements.schema import Judgement, Message, Span, Step

GOOD = b'{"prompt": "p", "expected": "e"}'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "feedback.jsonl"


def random_judgement(chance, number):
    """A random judgement; each field may be missing."""
    text = lambda: "".join(chance.choice('ab \n\t"\\é\u2028😀\x00') for _ in range(chance.randint(0, 9))) + "x"  # noqa: E731
    maybe = lambda value: value if chance.random() < 0.6 else None  # noqa: E731
    responses = tuple(text() for _ in range(chance.randint(0, 4)))

    def per_response(draw):
        values = tuple(maybe(draw(response)) for response in responses)
        return maybe(values) if any(value is not None for value in values) else None

    def steps(response):
        ends = sorted(chance.sample(range(1, len(response) + 1), chance.randint(1, len(response))))
        return tuple(Step(end, chance.random()) for end in ends)

    ranking = format_ranking([chance.randrange(3) for _ in responses]) if responses else None
    return Judgement(
        prompt=chance.choice([text(), (Message("system", text()), Message("user", text()))]),
        responses=responses,
        score=per_response(lambda _: chance.random()),
        critique=per_response(lambda _: text()),
        expected=maybe(text()) if responses else text(),
        ranking=maybe(ranking),
        spans=per_response(lambda response: (Span(0, len(response)), Span(0, 1))),
        steps=per_response(steps),
        source=maybe(text()),
        episode=maybe(text()),
        meta=chance.choice([{}, {"a": [1, None, {"b": text()}]}]),
        id=maybe(str(number)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_round_trip(path, seed):
    chance = random.Random(seed)
    judgements = [random_judgement(chance, i) for i in range(30)]
    write(path, judgements)
    assert read(path) == judgements
    assert [j.where for j in read(path)] == [f"{path}:{i}" for i in range(1, 31)]


def test_a_lone_response_is_written_without_lists(path):
    write(path, [Judgement("p", ("ab",), score=(1.0,), steps=((Step(2, 1.0),),))])
    line = {"prompt": "p", "responses": ["ab"], "score": 1.0, "steps": [{"end": 2, "label": 1.0}]}
    assert json.loads(path.read_text()) == line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"prompt", ":2: not JSON: Expecting value at column 1; one object per line"),
        (b'{"prompt": "p"', ":2: not JSON: "),
        (GOOD + b"," + GOOD, ":2: not JSON: Extra data"),
        (b"[" * 100_000, ":2: not JSON: the brackets are nested"),
        (b'{"prompt": "p\xff", "expected": "e"}', ":2: byte 14 is not UTF-8; save the file as UTF-8"),
        (b'{"prompt": "p", "expected": "e", "prompt": "q"}', ":2: prompt: occurs twice; keep one"),
        (b'{"prompt": "p", "expected": "e", "meta": {"a": 1, "a": 2}}', ":2: a: occurs twice; keep one"),
        (b'{"prompt": "p", "responses": ["a"], "score": NaN}', ":2: score: nan is not finite"),
        (b'{"prompt": "p", "responses": ["a"], "score": -Infinity}', ":2: score: -inf is not finite"),
        (b'{"prompt": "p", "responses": ["a"], "score": 7}', ":2: score: 7 is outside the scale 0 to 1"),
        (b'{"prompt": "p", "expected": "e", "meta": {"a": NaN}}', ":2: meta: cannot be written as JSON"),
    ],
)
def test_a_bad_line_is_named(path, line, message):
    path.write_bytes(GOOD + b"\n" + line + b"\n")
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


def test_an_id_is_unique(path):
    path.write_text('{"prompt": "p", "expected": "e", "id": "x"}\n' * 2)
    with pytest.raises(ValueError, match=":2: id: 'x' is also on line 1"):
        read(path)


def test_ten_bad_lines_are_listed_and_the_others_counted(path):
    path.write_bytes(b"x\n" * 12 + GOOD)
    with pytest.raises(ValueError) as error:
        read(path)
    lines = str(error.value).splitlines()
    assert lines[0] == "12 lines are wrong" and lines[-1].strip() == "… and 2 more lines"
    assert [line.split(":")[1] for line in lines[1:-1]] == [str(i) for i in range(1, 11)]


def test_skipping_says_what_is_skipped(path):
    path.write_bytes(b"x\n" + GOOD + b"\nx\n")
    with pytest.warns(UserWarning, match="skipped: 2 lines are wrong") as warned:
        assert len(read(path, on_bad="skip")) == 1
    assert f"{path}:3: not JSON" in str(warned[0].message)


def test_a_file_without_judgements_is_refused(path):
    path.write_bytes(b"\n\n")
    with pytest.raises(ValueError, match="there is no judgement in it"):
        read(path)
    path.write_bytes(b"x\n")
    with pytest.raises(ValueError, match="not JSON"):
        read(path, on_bad="skip")
    with pytest.raises(ValueError, match="path: there is no file .*other.jsonl"):
        read(path.with_name("other.jsonl"))


def test_a_scale_goes_upwards(path):
    path.write_text('{"prompt": "p", "responses": ["a"], "score": 7}\n')
    assert read(path, (0, 10))[0].score == (7.0,)
    with pytest.raises(ValueError, match="scale: got 1 to 1"):
        read(path, (1, 1))
    with pytest.raises(ValueError, match="on_bad: got 'drop'"):
        read(path, on_bad="drop")


def test_windows_files_and_a_last_line_without_end_are_read(path):
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n" + GOOD)
    assert [j.where for j in read(path)] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ([Judgement("p", expected="e"), Judgement("p", (" ",))], "judgement 2: responses: the text is empty"),
        ([Judgement("p", expected="e", id="x")] * 2, "judgement 2: id: 'x' is also that of judgement 1"),
        ([Judgement("p", ("a", "b"), ranking="A > C")], "judgement 1: ranking: "),
        ([Judgement("p", expected="e", meta={"x": {1}})], "judgement 1: meta: cannot be written"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(path, judgements, message):
    path.write_bytes(GOOD)
    with pytest.raises(ValueError, match=message):
        write(path, judgements)
    assert path.read_bytes() == GOOD and list(path.parent.iterdir()) == [path]


def test_two_rounds_may_say_one_id_of_different_replies_but_no_judgement_counts_twice(tmp_path):
    """Also if the replies are in another order. Two teachers may disagree about them, and a policy may repeat in the
    second round a reply of the first one.
    """
    names = ("first", "second", "ana", "judged", "again", "copy")
    first, second, ana, by_model, again, copy = (str(tmp_path / f"{name}.jsonl") for name in names)
    judgement = Judgement("p", ("a", "b"), ranking="A > B", source="rule", id="train-0")
    write(first, [Judgement("q", ("a",), score=(1.0,)), judgement])
    write(second, [replace(judgement, responses=("a", "c"))])
    write(ana, [replace(judgement, source="ana")])
    write(by_model, [replace(judgement, meta={"said_by": {"ranking": "a model"}})])
    write(again, [replace(judgement, meta={"run": "second_sample-seed0"})])
    paths = [first, second, ana, by_model, again]
    assert read_all(paths) == [judgement for path in paths for judgement in read(path)]
    write(copy, [replace(judgement, id="train-1"), replace(judgement, responses=("b", "a"), ranking="B > A")])
    twice = f"{copy}:2: id: 'train-0' is also in {first}:2, with the same replies and the same source; remove"
    with pytest.raises(ValueError) as caught:
        read_all([first, second, copy])
    assert str(caught.value).startswith(twice)
    with pytest.warns(UserWarning, match="skipped: "):
        assert read_all([first, copy], on_bad="skip") == read(first) + read(copy)[:1]
