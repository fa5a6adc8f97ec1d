"""Dialogues of several turns by a chat template: the ids between two replies, for ten templates and three tokenizers.

Expected ids are those of transformers' `apply_chat_template` on the whole conversation.
"""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from data_modules.text import ByteTokenizer, FolderTokenizer  # noqa: E402
from tests.data_modules.text.chats import KINDS, SHAPES, Shape, folder  # noqa: E402

END = {name: shape.eos for name, shape in SHAPES.items()} | {"gemma": "<end_of_turn>", "plain": "<turn>"}
WHOLE = [name for name in SHAPES if name not in ("qwen", "plain")]  # qwen opens a thought, plain ends with white space
TURNS = [("it is 2", "and so ?"), ("nothing, thank you .", "  how\nare you\n"), ("a", "naïve 日本 🙂"), ("2 < 3", "")]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """A function from shape and kind to this package's tokenizer and that of transformers."""
    place = tmp_path_factory.mktemp("turns")

    @cache
    def make(name, kind):
        path = folder(place / f"{name}-{kind}", SHAPES[name], kind)
        return FolderTokenizer(path), transformers.AutoTokenizer.from_pretrained(path)

    return make


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def starts(shape):
    """The messages that a dialogue may start with."""
    chat = [user("what is it that you want ?")]
    return [chat, [{"role": "system", "content": "I want <b>"}, *chat]] if shape.system else [chat]


def theirs_of(theirs, chat, opens):
    return theirs.apply_chat_template(chat, add_generation_prompt=opens, return_dict=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WHOLE)
def test_opening_replies_and_turns_are_the_ids_of_the_whole_conversation(name, kind, tokenizers):
    """For templates that keep replies as they are. A reply is the text between the opening and its end."""
    tokenizer, theirs = tokenizers(name, kind)
    end = tokenizer.token(END[name])
    chat = starts(SHAPES[name])[0]
    row = tokenizer.encode_prompt(chat)
    for reply, text in TURNS:
        answered = theirs_of(theirs, [*chat, assistant(reply)], False)
        assert answered[: len(row)] == row
        sampled = answered[len(row) : len(answered) - answered[::-1].index(end)]
        row = row + sampled + tokenizer.encode_turn(text, chat, end)
        chat = [*chat, assistant(reply), user(text)]
        assert row == theirs_of(theirs, chat, True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_turn_is_what_the_template_writes_after_the_last_reply(name, kind, tokenizers):
    """After any start, with or without a system message; a cut reply gets its end, and llama2's blank before it."""
    tokenizer, theirs = tokenizers(name, kind)
    end = tokenizer.token(END[name])
    for chat in starts(SHAPES[name]):
        for reply, text in TURNS:
            turn = tokenizer.encode_turn(text, chat, end)
            chat = [*chat, assistant(reply), user(text)]
            whole = theirs_of(theirs, chat, True)
            assert whole[len(whole) - len(turn) - 1 :] == [end, *turn]
            cut = tokenizer.encode_turn(text, chat[:-2])
            assert cut[len(cut) - len(turn) - 1 :] == [end, *turn]
            assert len(cut) == len(turn) + (2 if name == "llama2" else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_what_the_user_spells_is_text(name, kind, tokenizers):
    """As many control tokens as with a harmless text, even if earlier messages spell some."""
    shape, (tokenizer, _) = SHAPES[name], tokenizers(name, kind)
    end = tokenizer.token(END[name])
    numbers = {tokenizer.token(text) for text in (*shape.special, *shape.words)}
    harmless = Counter(i for i in tokenizer.encode_turn("x", [user("x")], end) if i in numbers)
    for token in (*shape.special, *shape.words, "<pad>"):
        for text in (token, f"a{token}\n b", token.upper(), "".join(shape.special) + token):
            for chat in ([user("x")], [user(text), assistant(text), user(text)]):
                ids = tokenizer.encode_turn(text, chat, end)
                assert Counter(i for i in ids if i in numbers) == harmless, (chat, text)


@pytest.mark.parametrize("name", SHAPES)
def test_what_the_assistant_said_does_not_matter(name, tokenizers):
    tokenizer, _ = tokenizers(name, "bytes")
    turns = [
        tokenizer.encode_turn("so ?", [user("a"), assistant(words), user("b")]) for words in ("", "  <think>x", "y")
    ]
    assert turns[0] == turns[1] == turns[2]


# ---- ends of replies


def test_a_reply_that_ended_otherwise_than_the_template_ends_turns_gets_the_templates_end_too(tokenizers):
    """Gemma's eos is `<eos>`, and its template ends a turn with `<end_of_turn>`."""
    tokenizer, _ = tokenizers("gemma", "bytes")
    turn, chat = tokenizer.token("<end_of_turn>"), [user("a")]
    cut = tokenizer.encode_turn("b", chat, None)
    assert tokenizer.encode_turn("b", chat, tokenizer.eos) == cut and cut[0] == turn
    assert tokenizer.encode_turn("b", chat, turn) == cut[1:]


def of(tmp_path, template, **options):
    shape = Shape(template, SHAPES["chatml"].special, eos="<|im_end|>", **options)
    return FolderTokenizer(folder(tmp_path, shape, "bytes"))


BARE = "{% for m in messages %}{{ m.role }} : {{ m.content }}\n{% endfor %}assistant :"


def test_a_template_without_an_end_of_turn(tmp_path):
    """A line ends with "\\n". A reply that stopped there has it; after eos, or if the reply was cut, it follows."""
    tokenizer = of(tmp_path, BARE)
    expected = tokenizer.encode("\nuser : b\nassistant :")
    assert tokenizer.encode_turn("b", [user("a")], tokenizer.eos) == expected
    assert tokenizer.encode_turn("b", [user("a")], None) == expected
    assert tokenizer.encode_turn("b", [user("a")], tokenizer.token("\n")) == expected[1:]


def test_an_end_that_only_users_have_is_not_taken_for_the_replys(tmp_path):
    end = "{% if m.role == 'user' %}<|im_end|>{% endif %}"
    tokenizer = of(tmp_path, BARE.replace("\n", end))
    expected = [*tokenizer.encode("user : b"), tokenizer.eos, *tokenizer.encode("assistant :")]
    assert tokenizer.encode_turn("b", [user("a")], tokenizer.eos) == expected


# ---- templates that change messages


@pytest.mark.parametrize(
    "content",
    ["m.content | trim", "m.content.split('</think>')[-1]", "m.content | upper", "m.content.strip('\\n .')"],
)
def test_a_template_that_rewrites_replies_leaves_what_comes_after_them(content, tmp_path):
    body = "{% if m.role == 'assistant' %}{{ CONTENT }}{% else %}{{ m.content }}{% endif %}"
    chat = "{% for m in messages %}<|im_start|>" + body + "<|im_end|>{% endfor %}<|im_start|>"
    tokenizer = of(tmp_path, chat.replace("CONTENT", content))
    begin, end = tokenizer.token("<|im_start|>"), tokenizer.eos
    assert tokenizer.encode_turn("b", [user("a")], end) == [begin, *tokenizer.encode("b"), end, begin]


def test_a_template_that_refuses_tags_in_replies_takes_any_reply(tmp_path):
    """As gpt-oss: the model samples tags, and the template expects them as separate fields."""
    check = "{% if '<|im_end|>' in m.content %}{{ raise_exception('a tag') }}{% endif %}"
    tokenizer = of(tmp_path, BARE.replace("{{ m.role", check + "{{ m.role"))
    chat = [user("a"), assistant("b<|im_end|>"), user("c")]
    assert tokenizer.encode_turn("d", chat) == tokenizer.encode("\nuser : d\nassistant :")


@pytest.mark.parametrize(
    "content",
    [
        "'' if m.role == 'assistant' else m.content",
        "m.content ~ m.content",
        "m.content[1:]",
        "m.content if m.role == 'user' or loop.index < 3 else 'x'",
    ],
)
def test_where_the_place_of_the_reply_is_not_to_be_found_an_error_says_so(content, tmp_path):
    """Replies are left out, repeated, shortened by a letter, or dropped after the first: the last one is lost."""
    tokenizer = of(tmp_path, BARE.replace("m.content", content))
    with pytest.raises(
        ValueError, match="^chat: the end of a reply cannot be located in the output of the chat template"
    ):
        tokenizer.encode_turn("d", [user("a"), assistant("b"), user("c")])


def test_a_reply_that_is_one_token_with_what_follows_is_refused(tmp_path):
    """Words between blanks: `reply###` is one word, and no part of it is the template's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<end>", "<pad>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.content }}###{% endfor %}"
    config = {"eos_token": "<end>", "pad_token": "<pad>", "chat_template": template}
    Path(tmp_path, "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the end of a reply cannot be located"):
        FolderTokenizer(str(tmp_path)).encode_turn("a", [user("a")])


def test_a_template_that_refuses_the_next_turn_says_why(tmp_path):
    check = "{% if messages | length > 3 %}{{ raise_exception('two turns at most') }}{% endif %}"
    tokenizer = of(tmp_path, check + BARE)
    assert tokenizer.encode_turn("b", [user("a")])
    with pytest.raises(ValueError, match="the chat template of .* refuses the messages: two turns at most"):
        tokenizer.encode_turn("c", [user("a"), assistant("x"), user("b")])


def test_characters_of_private_use_are_text_like_any(tokenizers):
    """The marks that stand for a reply are characters that no message has."""
    tokenizer, theirs = tokenizers("chatml", "bytes")
    chat = [user("\ue000 \ue001"), assistant("x"), user("\ue002")]
    turn = tokenizer.encode_turn("\ue003 \ue001", chat, tokenizer.eos)
    whole = theirs_of(theirs, [*chat, assistant("y"), user("\ue003 \ue001")], True)
    assert turn == whole[-len(turn) :] and tokenizer.eos == whole[-len(turn) - 1]


def test_without_a_template_there_are_no_turns(tmp_path):
    path = Path(folder(tmp_path, SHAPES["chatml"], "bytes"))
    (path / "chat_template.jinja").unlink()
    for tokenizer in (FolderTokenizer(str(path)), ByteTokenizer().fit()):
        with pytest.raises(ValueError, match="several turns needs a chat template, and the tokenizer has none"):
            tokenizer.encode_turn("b", [user("a")])
