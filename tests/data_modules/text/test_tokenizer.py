"""Tokenizers: decoding inverts encoding, every process gives the same ids, and other programs read the files."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("tokenizers")
import tokenizers  # noqa: E402

from data_modules.text import BPETokenizer, ByteTokenizer, FolderTokenizer, WordTokenizer  # noqa: E402
from data_modules.text.tokenizer import library  # noqa: E402

CORPUS = ["the movie was good", "the book was bad .", "naïve café , the movie was the book"]
KINDS = {"word": WordTokenizer, "byte": ByteTokenizer, "bpe": lambda: BPETokenizer(264)}


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return KINDS[request.param]().fit(CORPUS)


# ---- all kinds


def test_what_is_encoded_is_decoded_without_its_stop_token(tokenizer):
    for text in CORPUS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer.decode([*ids, tokenizer.eos]) == text
    assert tokenizer.encode("") == [] and tokenizer.decode([tokenizer.eos]) == ""


def test_a_special_token_within_a_reply_is_seen(tokenizer):
    """Else a reply full of padding would look empty to a judge; and only one stop token is removed."""
    good = tokenizer.encode("good")
    assert "<pad>" in tokenizer.decode([*good, tokenizer.pad]) and "<eos>" in tokenizer.decode([tokenizer.eos] * 2)


def test_a_special_token_written_in_a_text_ends_nothing(tokenizer):
    try:
        ids = tokenizer.encode("good <eos>")
    except ValueError as error:
        assert "'<eos>'" in str(error)
    else:
        assert tokenizer.eos not in ids and tokenizer.decode(ids) == "good <eos>"


def test_ids_are_below_the_size_and_pad_is_not_eos(tokenizer):
    ids = {i for text in CORPUS for i in tokenizer.encode(text)}
    assert ids.isdisjoint({tokenizer.pad, tokenizer.eos}) and tokenizer.pad != tokenizer.eos
    assert max(ids | {tokenizer.pad, tokenizer.eos}) < tokenizer.size


def test_sizes():
    """Words: the movie was good book bad . naïve café , and 3 special ones."""
    assert WordTokenizer().fit(CORPUS).size == 10 + 3
    assert ByteTokenizer().fit(CORPUS).size == 256 + 2 and BPETokenizer(264).fit(CORPUS).size == 264


@pytest.mark.slow
def test_another_process_makes_the_same():
    """With another hash seed sets have another order."""
    code = (
        "import json, sys; from data_modules.text import BPETokenizer, ByteTokenizer, WordTokenizer; "
        "kinds = (WordTokenizer(), ByteTokenizer(), BPETokenizer(264)); "
        "print(*(kind.fit(json.loads(sys.argv[1])).digest for kind in kinds))"
    )
    command = [sys.executable, "-c", code, json.dumps(CORPUS)]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert process.stdout.split() == [make().fit(CORPUS).digest for make in KINDS.values()]


def test_the_digest_is_of_the_vocabulary():
    assert WordTokenizer().fit(CORPUS).digest == WordTokenizer().fit(reversed(CORPUS)).digest
    variants = [
        WordTokenizer().fit([*CORPUS, "more"]),
        ByteTokenizer().fit(),
        *(BPETokenizer(n).fit(CORPUS) for n in (259, 260)),
    ]
    assert len({variant.digest for variant in [WordTokenizer().fit(CORPUS), *variants]}) == 5


def test_it_must_be_fitted_first():
    with pytest.raises(RuntimeError, match="fit"):
        WordTokenizer().encode("the")


def test_a_package_that_is_missing_says_where_it_comes_from():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning_nlf\[text\]'"):
        library("a_package_that_is_missing")


# ---- words


def test_an_unknown_word_is_named():
    with pytest.raises(ValueError, match="no token for 'dreadful'"):
        WordTokenizer().fit(CORPUS).encode("the movie\n was  dreadful , was it ?")


def test_a_corpus_that_holds_a_special_token_is_refused():
    with pytest.raises(ValueError, match="<eos>, <pad>"):
        WordTokenizer().fit(["a <pad> b", "<eos>"])


# ---- byte pairs


def test_any_text_comes_back_from_bytes():
    text = "  Ünïcode\n\t日本 🙂 <pad> "
    for tokenizer in (ByteTokenizer().fit(), BPETokenizer(264).fit(CORPUS)):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(ByteTokenizer().fit().encode(text)) == len(text.encode())


def test_frequent_pairs_are_merged():
    """`the ` occurs four times, so it has fewer ids than bytes."""
    assert len(BPETokenizer(270).fit(CORPUS).encode(" the movie")) < len(" the movie")


@pytest.mark.parametrize(("size", "message"), [(257, "at least 258"), (5000, "5000, and the corpus gives only")])
def test_a_size_that_cannot_be_had_is_refused(size, message):
    with pytest.raises(ValueError, match=f"size: .*{message}"):
        BPETokenizer(size).fit(CORPUS)


# ---- folders


def test_a_saved_tokenizer_is_the_same_in_a_folder(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "made")
    folder = FolderTokenizer(str(tmp_path / "made"))
    folder.save(tmp_path / "again")
    for copy in (folder, FolderTokenizer(str(tmp_path / "again"))):
        assert (copy.digest, copy.size, copy.eos, copy.pad) == (
            tokenizer.digest, tokenizer.size, tokenizer.eos, tokenizer.pad,
        )  # fmt: skip
        assert copy.encode(CORPUS[1]) == tokenizer.encode(CORPUS[1])
        assert copy.encode_prompt(CORPUS[1]) == tokenizer.encode(CORPUS[1])


def test_transformers_reads_what_is_saved(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(CORPUS[2])["input_ids"] == tokenizer.encode(CORPUS[2])
    assert theirs.decode(tokenizer.encode(CORPUS[2])) == CORPUS[2]
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos, tokenizer.pad)
    theirs.save_pretrained(tmp_path / "theirs")
    assert FolderTokenizer(str(tmp_path / "theirs")).digest == tokenizer.digest


def model_folder(folder, begin=False, **config):
    """A model folder: words, a begin token, and special tokens of a chat template."""
    words = {word: i for i, word in enumerate(["<s>", "<|end|>", "<|user|>", "<|assistant|>", "?", "hi", "you", "who"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>", "<|end|>", "<|user|>", "<|assistant|>"])
    if begin:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A <|end|>", special_tokens=[("<s>", 0), ("<|end|>", 1)]
        )
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return str(folder)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|> {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NAMED = {"eos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True}, "bos_token": "<s>"}


def test_a_prompt_begins_as_the_model_wants_it(tmp_path):
    """`<s>` before the prompt only, and no end token: that is left to the reply."""
    tokenizer = FolderTokenizer(model_folder(tmp_path, begin=True, **NAMED), pad="<|pad|>")
    assert tokenizer.encode_prompt("hi you") == [0, 5, 6] and tokenizer.encode("hi you") == [5, 6]


def test_a_special_token_is_named_by_its_text(tmp_path):
    """`<|end|>` and `<|user|>` as stop tokens, and a word; padding and texts of several tokens are refused."""
    tokenizer = FolderTokenizer(model_folder(tmp_path, **NAMED), pad="<|pad|>")
    assert [tokenizer.token(text) for text in ("<|end|>", "<|user|>", "hi")] == [1, 2, 5]
    for wrong, fault in (
        ("<|pad|>", r"'<\|pad\|>' is the padding or unknown token"),
        ("hi you", "'hi you' is 2 tokens"),
        ("", "'' is 0 tokens"),
    ):
        with pytest.raises(ValueError, match=fault):
            tokenizer.token(wrong)


@pytest.mark.parametrize("separate", [True, False])
def test_a_chat_is_written_by_the_template(tmp_path, separate):
    """<s> <|user|> hi <|end|> <|assistant|> you <|end|> <|user|> who <|end|> <|assistant|>."""
    pytest.importorskip("transformers")
    folder = model_folder(tmp_path / "model", **NAMED | ({} if separate else {"chat_template": TEMPLATE}))
    if separate:
        (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    chat = [("user", "hi"), ("assistant", "you"), ("user", "who")]
    messages = [{"role": role, "content": content} for role, content in chat]
    tokenizer = FolderTokenizer(folder, pad="<|pad|>")
    tokenizer.save(tmp_path / "saved")
    for version in (tokenizer, FolderTokenizer(str(tmp_path / "saved"))):
        assert version.encode_prompt(messages) == [0, 2, 5, 1, 3, 6, 1, 2, 7, 1, 3]
    with pytest.raises(ValueError, match=r"<\|end\|>|<\|user\|>"):
        tokenizer.encode("hi <|end|>")


def test_a_chat_without_a_template_is_refused(tmp_path):
    pytest.importorskip("transformers")
    messages = [{"role": "user", "content": "hi"}]
    for tokenizer in (
        FolderTokenizer(model_folder(tmp_path, **NAMED), pad="<|pad|>"),
        ByteTokenizer().fit(),
    ):
        with pytest.raises(ValueError, match="no chat template"):
            tokenizer.encode_prompt(messages)


def test_a_pad_token_may_be_added_or_chosen(tmp_path):
    """Eight words: a new token gets the ninth id; an existing one keeps its id."""
    folder = model_folder(tmp_path, **NAMED)
    added, chosen = FolderTokenizer(folder, pad="<|pad|>"), FolderTokenizer(folder, pad="?")
    assert (added.pad, added.size) == (8, 9) and (chosen.pad, chosen.size) == (4, 8)
    assert added.eos == chosen.eos == 1 and added.digest != chosen.digest


def test_a_folder_without_eos_says_what_to_do(tmp_path):
    folder = model_folder(tmp_path)
    with pytest.raises(ValueError, match="has no eos token: give one, such as `eos: ") as error:
        FolderTokenizer(folder)
    assert folder in str(error.value)
    assert FolderTokenizer(folder, eos="<|end|>", pad="<|pad|>").eos == 1
    with pytest.raises(ValueError, match=r"pad: '<\|end\|>' is also the eos token of"):
        FolderTokenizer(folder, eos="<|end|>", pad="<|end|>")


@pytest.mark.parametrize("pad", [{}, {"pad_token": "<|end|>"}])
def test_padding_is_a_token_that_means_nothing_else(tmp_path, pad):
    """A token that neither begins nor ends a text nor is in the template: `<|assistant|>`, so there is no new id.

    A new id would have no row in a full embedding; it is made only if there is no unused token.
    """
    special = {"eos_token": "<|end|>", "bos_token": "<s>"} | pad
    folder = model_folder(tmp_path, **special, chat_template="<|user|>{{ messages[0].content }}")
    tokenizer = FolderTokenizer(folder)
    assert tokenizer.pad == tokenizer._backend.token_to_id("<|assistant|>") and tokenizer.size == 8
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.save(str(tmp_path / "tokenizer.json"))
    assert FolderTokenizer(folder)._backend.id_to_token(FolderTokenizer(folder).pad) == "<|pad|>"


@pytest.mark.parametrize("processor", ["<s> $A <|end|>", "<|end|> $A", "<|end|> $A <|end|>", "<s> $A", "$A"])
def test_what_stands_before_a_prompt_is_what_transformers_puts_there(tmp_path, processor):
    """OPT begins with its eos. Tokens after a text are left to the reply."""
    transformers = pytest.importorskip("transformers")
    folder = model_folder(tmp_path, **NAMED, pad_token="?")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=processor, special_tokens=[("<s>", 0), ("<|end|>", 1)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)("hi you")["input_ids"]
    expected = theirs[: theirs.index(5)]
    assert len(expected) == (processor[0] != "$")
    assert FolderTokenizer(folder).encode_prompt("hi you") == [*expected, 5, 6]


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path):
    folder = model_folder(tmp_path, **NAMED, pad_token="?", chat_template=TEMPLATE)
    config = tmp_path / "tokenizer_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert FolderTokenizer(folder).encode_prompt([{"role": "user", "content": "hi"}]) == [0, 2, 5, 1, 3]


def test_code_in_a_folder_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    """tokenizer.json has everything, and the template needs no code. The saved folder names no code either."""
    pytest.importorskip("transformers")
    code = {"AutoTokenizer": ["theirs.Mine", "theirs.Mine"]}
    folder = model_folder(tmp_path, **NAMED, pad_token="?", chat_template=TEMPLATE, auto_map=code)
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Mine: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    tokenizer = FolderTokenizer(folder)
    assert tokenizer.encode_prompt([{"role": "user", "content": "hi"}]) == [0, 2, 5, 1, 3]
    tokenizer.save(tmp_path / "saved")
    assert not (tmp_path / "ran").exists()
    assert "auto_map" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()


def test_special_tokens_may_stand_in_a_file_of_their_own(tmp_path):
    folder = model_folder(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>", "pad_token": "?"}))
    assert (FolderTokenizer(folder).eos, FolderTokenizer(folder).pad) == (1, 4)


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="path: .* has no tokenizer.json"):
        FolderTokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="path: /nowhere/at/all is neither a folder nor an available hub id"):
        FolderTokenizer("/nowhere/at/all")
