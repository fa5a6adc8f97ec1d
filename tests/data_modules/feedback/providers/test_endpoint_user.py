"""Served model as the user in a dialogue."""

import pytest

pytest.importorskip("openai")

from data_modules.feedback.providers import EndpointUser  # noqa: E402
from data_modules.judgements.schema import Message  # noqa: E402
from lightning_nlf.batch import TeacherStopped  # noqa: E402

CHAT = [Message("user", "what is rich in fiber ?"), Message("assistant", "peas .")]


def test_the_user_reads_the_conversation_and_says_the_next_message(server, endpoint, prompt_of):
    server.answer = lambda body: server.chat("who says so ?")
    user = EndpointUser(endpoint(), instruction="{conversation} | next, or {end}", end="bye")
    assert user.next_message(CHAT) == "who says so ?"
    assert list(map(prompt_of, server.requests)) == [
        "user: what is rich in fiber ?\n\nassistant: peas . | next, or bye"
    ]
    assert user.next_message(CHAT) == "who says so ?" and user.client.counters["cached"] == 1


def test_the_dialogue_ends_with_the_users_word_for_it_and_with_no_answer(server, endpoint):
    server.answer = lambda body: server.chat("Bye.")
    assert EndpointUser(endpoint(), end="bye").next_message(CHAT) is None
    server.answer = lambda body: server.chat("")
    assert EndpointUser(endpoint(), end="bye", temperature=1.0).next_message(CHAT) is None


def test_a_spent_budget_is_no_end_of_a_dialogue(server, endpoint):
    server.answer = lambda body: server.chat("and ?")
    user = EndpointUser(endpoint(max_calls=1))
    assert user.next_message(CHAT) == "and ?"
    with pytest.raises(TeacherStopped, match="user: "):
        user.next_message([*CHAT, Message("user", "and ?"), Message("assistant", "beans .")])
