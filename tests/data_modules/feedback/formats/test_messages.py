"""OpenAI's and TRL's formats: prompts, answers, and what is left out."""

import pytest

from data_modules.judgements.schema import Judgement, Message
from tests.data_modules.feedback.formats.examples import OPENAI, OPENAI_PREFERENCE, TRL


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_the_last_message_of_the_assistant_is_expected_and_what_is_no_text_is_counted(convert):
    judgements, account = convert("openai", OPENAI)
    before = (
        Message("developer", "be brief"),
        Message("user", "what is this ?"),
        Message("assistant", "a fiber ."),
        Message("user", "sure ?"),
    )
    assert judgements == [Judgement(before, expected="yes .", id="1")]
    assert account == [
        "1 image parts left out: first in record 1",
        "fields left out (in how many records): messages[].name (1)",
    ]


def test_parts_of_text_are_joined_by_new_lines(convert):
    parts = [{"type": "text", "text": "a"}, {"type": "input_audio"}, {"type": "input_text", "text": "b"}]
    judgements, account = convert("openai", {"messages": [user(parts), assistant("c")]})
    assert judgements[0].prompt == "a\nb" and account == ["1 audio parts left out: first in record 1"]


def test_a_preferred_output_is_ranked_above_the_other(convert):
    judgements, account = convert("openai", OPENAI_PREFERENCE)
    assert judgements == [Judgement("hi", ("hello", "what"), ranking="A > B", id="1")]
    assert account == ["fields left out (in how many records): input.parallel_tool_calls (1)"]


def test_roles_of_other_programs_and_calls_of_tools(convert):
    """ShareGPT's turns; a tool call has no text, and the tool's answer is a message."""
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    messages = [user("a"), call, {"role": "function", "content": "4"}, assistant("b")]
    judgements, account = convert("openai", {"conversations": turns}, {"messages": messages})
    assert judgements == [
        Judgement("a", expected="b", id="1"),
        Judgement((Message("user", "a"), Message("tool", "4")), expected="b", id="2"),
    ]
    assert account == [
        "1 messages without text left out: first in record 2",
        "fields left out (in how many records): messages[].tool_calls (1)",
    ]


def test_records_without_an_answer_are_counted(convert):
    records = [{"messages": [user("a"), assistant("b")]}, {"messages": [user("a")]}, {"messages": []}]
    silent = {"messages": [user("a"), assistant("b") | {"weight": 0}]}
    judgements, account = convert("openai", *records, silent)
    assert len(judgements) == 1
    assert account == [
        "2 records without an answer left out: first in record 2",
        "1 records whose answer has weight 0 left out: first in record 4",
    ]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"messages": "x"}, "messages: must be a list, is a text"),
        ({"messages": [5]}, "messages[0]: must be an object, is the number 5"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: must be a text, is the number 5"),
        ({"messages": [{"content": "a"}]}, "messages[0].role: is missing; it must be a text"),
        ({"messages": [user([{"text": "a"}])]}, "messages[0].content[0].type: is missing; it must be a text"),
        (
            {"messages": [{"role": "narrator", "content": "a"}]},
            "messages[0].role: got 'narrator', must be one of system, ",
        ),
        ({}, "messages: is missing; it must be a list"),
        ("x", "the record: must be an object, is a text"),
        ({"messages": [user("a \ud83d"), assistant("b")]}, "prompt: the text has half of a surrogate pair"),
    ],
)
def test_a_wrong_type_is_named_by_its_field(convert, record, fault):
    with pytest.raises(ValueError) as error:
        convert("openai", record)
    assert str(error.value).startswith(f"f.json: record 1: {fault}")


def test_pairs_of_texts_and_of_messages(convert):
    """The prompt is a separate text or message list, or the beginning of both conversations."""
    pair = {"chosen": [assistant("b")], "rejected": [assistant("c")]}
    whole = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    records = [TRL, {"prompt": "a", **pair}, {"prompt": [user("a")], **pair}, whole, {"prompt": "a", **whole}]
    judgements, account = convert("trl", *records)
    assert judgements[0] == Judgement("the sky is", (" blue.", " green."), ranking="A > B", id="1")
    assert judgements[1:] == [Judgement("a", ("b", "c"), ranking="A > B", id=str(i)) for i in (2, 3, 4, 5)]
    assert account == []
    judgements, account = convert("trl", {"prompt": "z", **whole})
    assert judgements[0].prompt == "a"
    assert account == ["1 prompts left out because the conversations have a different one: first in record 1"]


def test_the_prompt_that_two_texts_share_ends_at_a_space(convert):
    """The texts share "the sky is bl", but the prompt ends at a word boundary."""
    judgements, _ = convert("trl", {"chosen": "the sky is blue.", "rejected": "the sky is black."})
    assert judgements == [Judgement("the sky is", ("blue.", "black."), ranking="A > B", id="1")]


def test_what_shares_no_prompt_is_counted(convert):
    equal = {"chosen": "a b", "rejected": "a b"}
    apart = {"chosen": [user("a"), assistant("b")], "rejected": [user("z"), assistant("c")]}
    nothing = {"chosen": "yes", "rejected": "no"}
    judgements, account = convert("trl", equal, apart, nothing, {"prompt": "a", "chosen": "", "rejected": "b"})
    assert judgements == []
    assert account == [
        "1 records with two equal answers left out: first in record 1",
        "1 records whose two conversations differ before the last answer left out: first in record 2",
        "1 records without a prompt left out: first in record 3",
        "1 records without an answer left out: first in record 4",
    ]


def test_completions_are_expected_and_scored_where_they_have_a_label(convert):
    record = {"prompt": "a", "completion": "b"}
    messages = {"prompt": [user("a")], "completion": [assistant("b")]}
    judgements, account = convert("trl", record, messages, record | {"label": True}, record | {"label": False})
    assert judgements == [
        Judgement("a", expected="b", id="1"),
        Judgement("a", expected="b", id="2"),
        Judgement("a", ("b",), score=(1.0,), id="3"),
        Judgement("a", ("b",), score=(0.0,), id="4"),
    ]
    assert account == []
    with pytest.raises(ValueError, match="label: must be true or false, is a text"):
        convert("trl", record | {"label": "good"})


def test_ids_are_kept_and_made_unique(convert):
    record = {"prompt": "a", "completion": "b"}
    judgements, _ = convert("trl", record | {"id": 2}, record, record | {"id": "x"}, record | {"id": "x"})
    assert [judgement.id for judgement in judgements] == ["2", "2:2", "x", "x:4"]
