"""Prompt formats: texts and chats become ids in the same way, also if a file has both."""

from dataclasses import asdict

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from data_modules.judgements.schema import Message  # noqa: E402
from data_modules.text import Chat, FolderTokenizer, Wording, WordTokenizer  # noqa: E402
from data_modules.text.prompts import PromptFormat  # noqa: E402
from tests.data_modules.text.chats import SHAPES, folder  # noqa: E402

TEXT = "what is it"
USER = Message("user", TEXT)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return FolderTokenizer(folder(tmp_path_factory.mktemp("chatml"), SHAPES["chatml"], "bytes"))


@pytest.fixture(scope="module")
def words():
    return WordTokenizer().fit([TEXT, "so"])


def test_a_text_and_a_message_of_the_user_are_the_same_prompt_where_there_is_a_template(chatml):
    ids = PromptFormat(chatml).ids
    assert ids(TEXT) == ids((USER,)) == chatml.encode_chat([asdict(USER)])


def test_a_system_message_is_added_where_a_chat_has_none(chatml):
    form = PromptFormat(chatml, Chat(system="so"))
    system = Message("system", "so")
    assert form.posed(TEXT) == form.posed((USER,)) == (system, USER)
    mine = (Message("system", "else"), USER)
    assert form.posed(mine) == mine


def test_without_chat_a_text_stays_a_text_and_messages_still_go_through_the_template(chatml):
    form = PromptFormat(chatml, False)
    assert form.ids(TEXT) == chatml.encode_prompt(TEXT) != chatml.encode_chat([asdict(USER)])
    assert form.ids((USER,)) == chatml.encode_chat([asdict(USER)])


def test_the_default_follows_the_tokenizer(chatml, words):
    assert PromptFormat(chatml).template == Chat() and PromptFormat(words).template is None
    assert PromptFormat(words).ids(TEXT) == words.encode_prompt(TEXT)
    with pytest.raises(ValueError, match="chat: the tokenizer has no chat template"):
        PromptFormat(words, True).ids(TEXT)


def test_the_suffix_ends_the_last_message(chatml):
    ids = PromptFormat(chatml, suffix=" so").ids
    assert ids((USER, Message("assistant", "no"), USER)) == chatml.encode_chat(
        [asdict(USER), {"role": "assistant", "content": "no"}, {"role": "user", "content": TEXT + " so"}]
    )


def test_a_prompt_without_a_token_is_refused(words):
    with pytest.raises(ValueError, match="prompt: it is empty"):
        PromptFormat(words).ids(" ")


def test_a_revision_and_a_critique_are_turns_of_a_chat():
    """[user x, assistant y, user "… c …"] with the texts of the yaml; a text is the first user's turn."""
    wording = Wording(revise="Wrong: {critique}", criticise="What is wrong? Or say {praise}", praise="Fine.")
    before = (Message("system", "s"), USER)
    assert wording.revision_prompt(TEXT, "y", "c") == (USER, Message("assistant", "y"), Message("user", "Wrong: c"))
    assert wording.critique_prompt(before, "y") == (
        *before, Message("assistant", "y"), Message("user", "What is wrong? Or say Fine."),
    )  # fmt: skip
    assert Wording(condition=" [{critique}]").conditioned_prompt(before, "c")[-1] == Message("user", TEXT + " [c]")
    assert [Wording(good="+", bad="-").announced(good) for good in (True, False)] == ["+", "-"]
    with pytest.raises(ValueError, match="wording.revise: placeholder {critique} is missing"):
        Wording(revise="Again.")
