"""Supervised fine-tuning: errors in files, the order of demonstrations, and a policy that learns them."""

import hashlib
import json
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch

pytest.importorskip("tokenizers")

from data_modules.text import (  # noqa: E402
    BPETokenizer,
    ByteTokenizer,
    DemonstrationsDataModule,
    FolderTokenizer,
    WordTokenizer,
)
from data_modules.text.rows import EXPERT, as_rows  # noqa: E402
from lightning_nlf.checkpoint_io import SafeCheckpointIO  # noqa: E402
from lightning_nlf.language.generation import reply  # noqa: E402
from lightning_nlf.networks import GRUPolicy  # noqa: E402
from lightning_nlf.objectives import ImitationPolicy, ReinforcePolicy  # noqa: E402

COLOURS = {"the sky is": "blue", "the grass is": "green", "the snow is": "white", "the night is": "very black"}


class Colours:
    """Things and their colours; one thing is held out, with words that training has."""

    turns = 1

    def __init__(self, held_out=("the snow is",)):
        self.held_out = held_out

    def cases(self, split):
        return []  # no prompts for replies

    def corpus(self):
        for prompt, answer in COLOURS.items():
            yield f"{prompt} {answer}"

    def demonstrations(self, split):
        members = {
            "train": lambda p: p not in self.held_out,
            "val": lambda p: p in self.held_out,
            "test": lambda p: False,
        }
        return [pair for pair in COLOURS.items() if members[split](pair[0])]


def write_lines(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def line(prompt="the sky is", expected="blue", **fields):
    return {"prompt": prompt, "expected": expected} | fields


def ready(tokenizer=None, epoch=0, rank=0, world_size=1, **options):
    data = DemonstrationsDataModule(tokenizer or WordTokenizer(), **options)
    data.trainer = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        current_epoch=epoch,
        accumulate_grad_batches=1,
        lightning_module=SimpleNamespace(prepare=lambda batch: batch),
        strategy=SimpleNamespace(reduce=lambda x, reduce_op: x * world_size, root_device=torch.device("cpu")),
    )
    data.setup("fit")
    return data


def reply_texts(data, batch):
    """The replies of a batch as text."""
    rows = zip(batch.actions, batch.expert_mask, strict=True)
    return [data.tokenizer.decode(actions[mask].tolist()) for actions, mask in rows]


# ---- rows


def test_a_demonstration_is_imitated_and_nothing_else():
    """Prompt `the sky is`, reply `blue` and the stop token: the last two of four actions are the expert's."""
    data = ready(task=Colours())
    batch = next(data.iteration())
    row = reply_texts(data, batch).index("blue")
    encoded = [*data.tokenizer.encode("the sky is blue"), data.tokenizer.eos]
    length = len(encoded) - 1
    assert batch.obs[row, :length].tolist() == encoded[:-1] and batch.actions[row, :length].tolist() == encoded[1:]
    assert batch.expert_mask[row].tolist() == [False, False, True, True] + [False] * (batch.obs.shape[1] - 4)
    assert torch.equal(batch.expert_mask, batch.valid) and not batch.mask.any() and batch.rewards is None


def test_a_task_and_files_are_joined_by_split(tmp_path):
    train = write_lines(tmp_path / "train.jsonl", line("the night is", "black"), "", line(id="a"))
    held_out = write_lines(tmp_path / "val.jsonl", line("the night is", "blue"), line())
    data = ready(task=Colours(), path=train, val_path=held_out, test_path=train)
    assert sorted(reply_texts(data, next(data.iteration()))) == sorted(["blue", "green", "very black", "black", "blue"])
    (batch,) = (b for loader in data.val_dataloader() for b in loader)
    assert sorted(reply_texts(data, batch)) == ["blue", "blue", "white"] and batch.rewards is None
    assert sorted(row.reply for row in data.demonstrations["test"]) == ["black", "blue"]


def test_a_file_alone_makes_its_own_vocabulary(tmp_path):
    """the sky is grass green, and 3 special tokens; the held-out file adds no words."""
    path = write_lines(tmp_path / "train.jsonl", line(expected="grass green"))
    assert ready(path=path).vocabulary == 5 + 3
    with pytest.raises(ValueError, match=r"val.jsonl:1: the tokenizer has no token for 'blue'"):
        ready(path=path, val_path=write_lines(tmp_path / "val.jsonl", line()))


def test_a_chat_goes_through_the_template(tmp_path):
    pytest.importorskip("transformers")
    ByteTokenizer().fit().save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}")
    path = write_lines(tmp_path / "chat.jsonl", line([{"role": "user", "content": "hi"}], "you"))
    data = ready(FolderTokenizer(str(tmp_path)), path=path)
    assert data.tokenizer.decode(data.demonstrations["train"][0].prompt_ids) == "user:hi;"


# ---- epochs


def test_an_epoch_is_all_or_so_many_and_none_comes_twice_before_all_had_their_turn(tmp_path):
    """Five demonstrations, two per epoch: in five epochs each is used twice, once before any is repeated."""
    words = ["a", "b", "c", "d", "e"]
    path = write_lines(tmp_path / "train.jsonl", *(line(expected=word) for word in words))
    whole = ready(path=path)
    assert sorted(reply_texts(whole, next(whole.iteration()))) == words
    order = []
    for epoch in range(5):
        data = ready(path=path, rows=2, epoch=epoch)
        again = ready(path=path, rows=2, epoch=epoch)
        batch = next(data.iteration())
        assert reply_texts(data, batch) == reply_texts(again, next(again.iteration()))
        order += reply_texts(data, batch)
    assert sorted(order[:5]) == sorted(order[5:]) == words
    assert (
        len({tuple(reply_texts(d, next(d.iteration()))) for d in (ready(path=path, rows=3, seed=s) for s in range(5))})
        > 1
    )


def test_ranks_share_an_epoch_and_the_held_out(tmp_path):
    words = ["a", "b", "c", "d", "e"]
    path = write_lines(tmp_path / "train.jsonl", *(line(expected=word) for word in words))
    for split in (lambda d: next(d.iteration()), lambda d: next(iter(d.val_dataloader()[0]))):
        shares = [ready(path=path, val_path=path, rank=rank, world_size=2) for rank in (0, 1)]
        texts = [reply_texts(data, split(data)) for data in shares]
        assert sorted(texts[0] + texts[1]) == words and abs(len(texts[0]) - len(texts[1])) == 1


def test_what_was_seen_is_counted():
    """blue, green, very black: 2 + 2 + 3 tokens with their stops, 7/3 per reply; two epochs."""
    data = DemonstrationsDataModule(WordTokenizer(), task=Colours())
    fitted(data, epochs=2)
    assert data.counters == {"iteration": 2, "rows": 6, "tokens": 14}
    assert data.statistics == {"reply_tokens": pytest.approx(7 / 3)}


def test_the_digest_is_of_the_texts(tmp_path):
    lines = [line(), line("the night is", "black")]
    path = write_lines(tmp_path / "a.jsonl", *lines)
    copy = write_lines(tmp_path / "b.jsonl", *({**record, "source": "me"} for record in lines))
    changed = write_lines(tmp_path / "c.jsonl", lines[0], line("the night is", "blue"))
    digests = [ready(path=p).data_digest for p in (path, copy, changed)]
    texts = [["the sky is", "blue"], ["the night is", "black"]]
    content = json.dumps({"train": texts, "val": [], "test": []}, separators=(",", ":"))
    assert digests[0] == digests[1] == hashlib.sha256(content.encode()).hexdigest() != digests[2]
    assert ready(path=path, val_path=changed).data_digest != digests[0]


# ---- errors


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "2: not JSON"),
        ({"prompt": "x"}, "2: responses: are missing, and so is expected"),
        ({"prompt": "x", "responses": ["y"]}, "2: expected: is missing"),
        ({"expected": "x"}, "2: prompt: is missing"),
        (line(expectd="y"), "2: expectd: unknown field; did you mean expected"),
        (line(expected=" "), "2: expected: the text is empty"),
        (line(prompt=3), "2: prompt: must be"),
        (line(id="first"), "2: id: 'first' is also on line 1"),
        (
            line(expected="blue " * 9),
            "2: 13 tokens exceed the 12 tokens of a row (context): shorten the text, or raise context",
        ),
    ],
)
def test_a_bad_line_is_named_before_training(tmp_path, bad, message):
    path = write_lines(tmp_path / "train.jsonl", line(id="first"), bad)
    with pytest.raises(ValueError) as error:
        ready(path=path, context=12)
    assert f"{path}:{message}" in str(error.value)


def test_a_row_as_long_as_the_context_is_taken(tmp_path):
    path = write_lines(tmp_path / "train.jsonl", line(expected="blue " * 8))
    assert len(ready(path=path, context=12).demonstrations["train"]) == 1


def test_an_unknown_word_of_a_task_is_named_by_its_place():
    class Forgetful(Colours):
        def corpus(self):
            yield "the sky grass snow night is blue green white black"

    with pytest.raises(ValueError, match="train demonstration 2 of the task: the tokenizer has no token for 'very'"):
        ready(task=Forgetful())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "path: there is no training data"),
        ({"task": Colours(), "rows": 0}, "rows: got 0"),
        ({"task": Colours(), "rows": 4}, "rows: got 4, and there are 3 demonstrations; use passes"),
        ({"task": Colours(), "context": 0}, "context: got 0"),
        ({"task": Colours(tuple(COLOURS))}, "task: it has no demonstrations to train on"),
        ({"path": "/nowhere.jsonl"}, "there is no file /nowhere.jsonl"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ready(**options)


def test_too_few_for_the_minibatches_or_the_processes():
    with pytest.raises(ValueError, match="rows: got 3 rows, must be at least 4"):
        next(ready(task=Colours(), minibatches=4).iteration())
    with pytest.raises(ValueError, match="val: got 1 demonstrations for 2 processes"):
        ready(task=Colours(), world_size=2).val_dataloader()


# ---- with a Trainer


def trainer(epochs, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, enable_model_summary=False, num_sanity_val_steps=0,
        plugins=[SafeCheckpointIO()], **quiet | options,
    )  # fmt: skip


def module(vocabulary=16, weights=None, kind=ImitationPolicy):
    torch.manual_seed(0)
    policy = GRUPolicy(vocabulary=vocabulary, width=16, weights=weights)
    options = {"divergence": "nll"} if kind is ImitationPolicy else {}
    return kind(policy=policy, optimizer=lambda p: torch.optim.Adam(p, lr=0.03), **options)


def fitted(data, epochs, model=None, **options):
    model = model or module()
    run = trainer(epochs, **options)
    run.fit(model, data)
    return run, model


def test_fine_tuning_from_start_to_weights(tmp_path):
    """The loss falls to nearly 0; the policy, and another one with its weights, gives the trained replies."""
    data = DemonstrationsDataModule(WordTokenizer(), task=Colours(), passes=4)
    run, model = fitted(data, epochs=1)
    first = {name: float(x) for name, x in run.callback_metrics.items()}
    run, model = fitted(data, epochs=20, model=model)
    last = {name: float(x) for name, x in run.callback_metrics.items()}
    assert first["train/imitation"] > 1.5 and last["train/imitation"] < 0.05
    assert {"val/imitation", "val/accuracy", "val/perplexity"} <= set(last) and "val/return" not in last
    assert last["val/perplexity"] == pytest.approx(math.exp(last["val/imitation"]), rel=1e-4)

    path = tmp_path / "sft.ckpt"
    run.save_checkpoint(path)
    started = GRUPolicy(vocabulary=16, width=16, weights=str(path))
    assert started.tokenizer_digest == data.tokenizer_digest
    for prompt in ("the sky is", "the grass is", "the night is"):
        ids = torch.tensor([data.tokenizer.encode(prompt)])
        for policy in (model.policy, started):
            tokens, *_ = reply(
                policy, ids, torch.tensor([3]), stop=(data.tokenizer.eos,), max_new=4, deterministic=True
            )
            assert data.tokenizer.decode(tokens[0].tolist()) == COLOURS[prompt]


def test_held_out_demonstrations_are_measured_and_tested(tmp_path):
    """Batches of 64 give the same loss as the module's own loss on all rows at once."""
    lengths = [1 + i % 5 for i in range(130)]
    path = write_lines(tmp_path / "t.jsonl", *(line(expected=" ".join(["blue"] * n)) for n in lengths))
    data = DemonstrationsDataModule(WordTokenizer(), task=Colours(), test_path=path)
    model = module()
    (metrics,) = trainer(1).test(model, data, verbose=False)
    assert [len(part) for part in data.test_dataloader()[0]] == [64, 64, 2]
    demonstrations = data.demonstrations["test"]
    rows = as_rows([row.prompt_ids for row in demonstrations], [row.reply_ids for row in demonstrations], EXPERT)
    with torch.no_grad():
        now = model.evaluate(rows)
    nll = -now.log_probs[rows.expert_mask]
    right = now.distribution.mode == rows.actions[rows.expert_mask]
    assert len(nll) == sum(lengths) + 130
    assert metrics["test/imitation"] == pytest.approx(float(nll.mean()), abs=1e-5)
    assert metrics["test/accuracy"] == pytest.approx(float(right.float().mean()), abs=1e-5)
    assert metrics["test/perplexity"] == pytest.approx(math.exp(nll.mean()), abs=1e-4)


def test_a_model_that_does_not_imitate_says_what_is_missing():
    with pytest.raises(ValueError, match="rewards"):
        fitted(DemonstrationsDataModule(WordTokenizer(), task=Colours()), 1, module(kind=ReinforcePolicy))


# ---- another tokenizer than the checkpoint's


@pytest.fixture
def checkpoint(tmp_path):
    run, _ = fitted(DemonstrationsDataModule(WordTokenizer(), task=Colours()), epochs=1, model=module(300))
    run.save_checkpoint(tmp_path / "words.ckpt")
    return str(tmp_path / "words.ckpt")


def test_a_checkpoint_remembers_its_tokenizer(checkpoint):
    data = ready(task=Colours())
    assert SafeCheckpointIO().load_checkpoint(checkpoint)["tokenizer_digest"] == data.tokenizer_digest
    assert data.tokenizer_digest == data.tokenizer.digest


@pytest.mark.parametrize("how", ["fit", "validate"])
def test_weights_of_another_tokenizer_are_refused(checkpoint, how):
    model = module(300, weights=checkpoint)
    with pytest.raises(ValueError, match="tokenizer: the policy was trained with a different tokenizer"):
        getattr(trainer(1), how)(model, DemonstrationsDataModule(BPETokenizer(260), task=Colours()))
    fitted(DemonstrationsDataModule(WordTokenizer(), task=Colours()), epochs=1, model=model)


@pytest.mark.parametrize("how", ["fit", "test", "validate"])
def test_a_checkpoint_of_another_tokenizer_is_not_resumed(checkpoint, how, tmp_path):
    path = write_lines(tmp_path / "t.jsonl", line())
    data = DemonstrationsDataModule(ByteTokenizer(), task=Colours(), test_path=path)
    with pytest.raises(ValueError, match="tokenizer: the policy was trained with a different tokenizer"):
        getattr(trainer(2), how)(module(300), data, ckpt_path=checkpoint)
    same_tokenizer = DemonstrationsDataModule(WordTokenizer(), task=Colours(), test_path=path)
    getattr(trainer(2), how)(module(300), same_tokenizer, ckpt_path=checkpoint)


def test_a_policy_that_was_trained_here_is_not_used_with_another_tokenizer():
    _, model = fitted(DemonstrationsDataModule(WordTokenizer(), task=Colours()), epochs=1, model=module(300))
    with pytest.raises(ValueError, match="tokenizer: "):
        trainer(1).validate(model, DemonstrationsDataModule(ByteTokenizer(), task=Colours()), verbose=False)


def test_a_vocabulary_that_is_too_small_is_refused():
    """the is sky grass snow night blue green white very black, and 3 special tokens."""
    data = DemonstrationsDataModule(WordTokenizer(), task=Colours())
    with pytest.raises(ValueError, match="vocabulary: the policy has 13 token ids, but the data has 14"):
        fitted(data, epochs=1, model=module(13))
    fitted(data, epochs=1, model=module(14))
