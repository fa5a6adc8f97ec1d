"""Rollouts of text tasks: tokens, rows, rewards, cut replies, evaluation, prediction and transcripts."""

import json
import math
import warnings
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.text import ByteTokenizer, FolderTokenizer, TextDataModule, WordTokenizer
from data_modules.text.environment import Case
from data_modules.text.expected import ExpectedResponses
from lightning_nlf.callbacks import Exhibits
from lightning_nlf.networks import DecoderShape, GRUPolicy, GRUValue, TransformerPolicy
from lightning_nlf.objectives import ActorCriticAgent, JointPolicy, ReinforcePolicy
from tests.data_modules.text.conftest import WORDS, Echo

SIZE = 15  # ids of either task: twelve words and three special tokens


def transformer():
    """Large weights: a nearly uniform model would hide rows in the wrong order."""
    torch.manual_seed(2)
    return TransformerPolicy(DecoderShape(SIZE, layers=2, heads=2, width=16, context=64, init_std=0.6))


class Many(Echo):
    """More prompts than a prediction has in one batch."""

    def cases(self, split):
        return [Case(f"{split}-{n}", f"say {WORDS[n % 6]}", {"word": WORDS[n % 6]}) for n in range(70)]


def agent(kind=ReinforcePolicy, seed=0, **kw):
    torch.manual_seed(seed)
    policy = GRUPolicy(vocabulary=SIZE, width=16)
    with torch.no_grad():
        policy.head.weight *= 3  # an untrained head is nearly uniform, and would hide rows in the wrong order
        policy.head.bias[1] += 2.5  # the stop token: some replies end, some are cut off
    if kind is ActorCriticAgent:
        kw["value"] = GRUValue(vocabulary=SIZE, width=16)
    return kind(policy=policy, optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01), **kw)


def module(task, **kw):
    settings = {"tokenizer": WordTokenizer(), "prompts": 6, "replies": 3, "max_new": 4}
    data = TextDataModule(task, **(settings | kw))
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    return data


def collected(data, actor, seed=3):
    return data.collect(actor, np.random.default_rng(seed))


def fitted(actor, data, epochs=2, **kw):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **({"limit_val_batches": 0} | kw),
    )  # fmt: skip
    trainer.fit(actor, data)
    return trainer


@pytest.mark.parametrize(("task", "window"), [("echo", None), ("walks", None), ("walks", 1), ("walks", 2)])
def test_stored_log_probs_are_those_of_the_training_forward(task, window, request):
    """The ratio in the first pass is 1, whether a row is a turn, a whole dialogue or a window of it."""
    actor, data = agent(), module(request.getfixturevalue(task), window=window)
    batch = collected(data, actor)
    now = actor.evaluate(batch)
    torch.testing.assert_close(now.log_probs, batch.log_probs, rtol=0, atol=1e-4)
    assert (now.log_probs[batch.mask] < -0.1).any() and batch.mask.any(1).all()


def test_a_dialogue_is_one_row_and_only_the_replies_are_learned_from(walks):
    """Prompt `3 more`, reply, `2 more`, reply, `1 more`, reply: the environment's text is read, not learned."""
    data = module(walks)
    batch = collected(data, agent())
    words = data.tokenizer.encode("0 1 2 3 more")
    for row in range(len(batch)):
        ids = torch.cat([batch.obs[row, :1], batch.actions[row]])[: int(batch.valid[row].nonzero()[-1]) + 2]
        turns = words.index(int(ids[0]))
        read = ids[~torch.cat([torch.tensor([False]), batch.valid[row]])[: len(ids)]]
        expected = [word for n in range(turns, 0, -1) for word in (words[n], words[4])]
        assert read.tolist() == expected
    assert data.statistics["turns"] == pytest.approx(2)  # six prompts: two each with 1, 2 and 3 turns
    assert data.counters["env_steps"] == int(batch.mask.sum())


def test_a_window_is_a_turn_a_row_and_starts_with_what_was_said_last(walks):
    data, actor = module(walks, window=1, replies=1), agent()
    batch = collected(data, actor)
    assert batch.group is None  # one reply per prompt: minibatches may split an episode
    assert batch.extra["episode"].bincount().sort().values.tolist() == [1, 1, 2, 2, 3, 3]
    for episode in batch.extra["episode"].unique():
        rows = batch.extra["episode"] == episode
        count = int(rows.sum())
        assert batch.extra["part"][rows].tolist() == list(range(count))
        starts = [data.tokenizer.decode(ids[:2].tolist()) for ids in batch.obs[rows]]
        assert starts == [f"{n} more" for n in range(count, 0, -1)]
        assert batch.score[rows].unique().numel() == 1
        torch.testing.assert_close(batch.rewards[rows].sum(), batch.score[rows][0])


def test_a_window_as_long_as_the_dialogue_sees_all_of_it(walks):
    """Its last row has the tokens of the whole dialogue, sampled from the same seeds."""
    whole = collected(module(walks), agent())
    parts = collected(module(walks, window=3), agent())
    last = torch.cat([parts.extra["episode"][1:] != parts.extra["episode"][:-1], torch.tensor([True])])
    assert torch.equal(parts[last].obs, whole.obs) and torch.equal(parts[last].actions, whole.actions)
    torch.testing.assert_close(parts[last].log_probs[parts[last].mask], whole.log_probs[parts[last].mask])


@pytest.mark.slow
def test_ppo_learns_from_windows(walks):
    """Each turn can say `ant`. Minibatches split episodes, because advantages are computed before."""
    actor = agent(ActorCriticAgent, clip=0.2, gamma=1.0, network_lr={"value": 0.02})
    data = module(walks, window=1, replies=1, prompts=24, minibatches=3, passes=2, evaluation_replies=50)

    def mean_return():
        return float(data.evaluate(actor, np.random.default_rng(0), False).rewards.sum()) / 150

    before = mean_return()
    fitted(actor, data, epochs=12)
    assert before < 0.7 and mean_return() > 1.2  # of 2 at best


@pytest.mark.parametrize("network", [None, transformer])
def test_a_reply_does_not_depend_on_its_neighbours(walks, network):
    """Nine dialogues of 1, 2 and 3 turns, some of which leave the batch early, and each of them alone."""
    data = module(walks, max_new=10)
    actor = agent() if network is None else ReinforcePolicy(policy=network(), optimizer=torch.optim.Adam)
    prompts, seeds = data.cases["train"], np.arange(3 * 3 * 3).reshape(9, 3)
    together = data.conversation.play(actor, prompts, seeds, copies=3)
    for row, beside in enumerate(together):
        (alone,) = data.conversation.play(actor, [beside.prompt], seeds[row : row + 1])
        assert [turn.tokens for turn in alone.turns] == [turn.tokens for turn in beside.turns]
        for single, batched in zip(alone.turns, beside.turns, strict=True):
            assert single.log_probs == pytest.approx(batched.log_probs, abs=1e-5)
    first = [len(episode.turns[0].tokens) for episode in together]
    assert sorted(first)[3] < max(first)  # enough end early and leave the batch


def test_the_same_epoch_gives_the_same_rows_and_a_run_that_is_resumed_ends_alike(echo, tmp_path):
    straight = agent()
    fitted(straight, module(echo), epochs=4)
    halved = agent()
    fitted(halved, module(echo), epochs=2).save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    resumed = agent(seed=1)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    data = module(echo)
    trainer.fit(resumed, data, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for weight, expected in zip(resumed.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)
    assert data.counters["iteration"] == 4


def test_every_prompt_has_its_turn_before_one_comes_again(echo):
    batch = collected(module(echo, prompts=4, replies=2), agent())
    assert len(batch.obs[:, 1].unique()) == 4 and batch.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


# ---- rewards


class PaysLength:
    """A reward model that prefers long replies."""

    def score(self, batch):
        last = torch.where(batch.valid, torch.arange(batch.valid.shape[1]), -1).max(1).values
        return torch.zeros(batch.valid.shape).scatter(1, last[:, None], batch.valid.sum(1, keepdim=True).float())


def test_a_scorer_pays_in_place_of_the_rule_which_is_still_reported(echo):
    by_rule, by_model = module(echo), module(echo, reward=PaysLength())
    ruled, scored = collected(by_rule, agent()), collected(by_model, agent())
    assert torch.equal(ruled.obs, scored.obs)
    torch.testing.assert_close(scored.rewards.sum(1), scored.valid.sum(1).float())
    assert by_model.statistics["true_reward"] == pytest.approx(by_rule.statistics["return"])
    assert by_model.statistics["return"] == pytest.approx(float(scored.valid.sum(1).float().mean()))
    assert by_model.counters["feedback_calls"] == 0 and by_rule.counters["feedback_calls"] == 18
    rows = by_model.evaluate(agent(), np.random.default_rng(0), True)
    assert torch.equal(rows.rewards.sum(1), rows.valid.sum(1).float()) and "true_reward" in rows.metrics


def test_a_scorer_reads_where_the_policy_works_and_its_rewards_come_back(echo):
    """In training, evaluation and prediction; the rule needs no strategy."""
    read = []

    class Noted:
        def score(self, batch):
            read.append((batch.obs.device.type, batch.valid.device.type))
            return torch.ones(batch.valid.shape, dtype=torch.float64)

    data, actor = module(echo, reward=Noted()), agent()
    state = {"world_size": 1, "global_rank": 0, "accumulate_grad_batches": 1, "testing": False}
    far = SimpleNamespace(root_device=torch.device("meta"))
    data.trainer = SimpleNamespace(**state, strategy=far, lightning_module=actor, current_epoch=0)
    predicted = data.predict_dataloader()[0]
    evaluated = data.evaluate(actor, np.random.default_rng(0), True)
    for rewards in (x.rewards for x in (collected(data, actor), evaluated, next(iter(predicted)))):
        assert rewards.device.type == "cpu" and rewards.dtype == torch.float32 and (rewards == 1).all()
    assert read == [("meta", "meta")] * 3
    ruled = module(echo)
    ruled.trainer = SimpleNamespace(**state)
    assert ruled.evaluate(actor, np.random.default_rng(0), True).rewards.device.type == "cpu"


# ---- unfinished replies


def cut(batch, data):
    """(B,) True if the row's last token is not a stop token."""
    return batch.final_obs != data.tokenizer.eos


@pytest.fixture
def keep_rows(echo):
    data = module(echo, max_new=3, prompts=8)
    batch = collected(data, agent())
    assert 0 < cut(batch, data).sum() < len(batch)
    return batch, cut(batch, data)


def test_replaced(echo, keep_rows):
    plain, unfinished = keep_rows
    batch = collected(module(echo, max_new=3, prompts=8, unfinished="replace", unfinished_reward=-3.0), agent())
    assert (batch.score[unfinished] == -3).all()
    assert torch.equal(batch.rewards[~unfinished], plain.rewards[~unfinished])


def test_penalised(echo, keep_rows):
    plain, unfinished = keep_rows
    batch = collected(module(echo, max_new=3, prompts=8, unfinished="penalty", unfinished_reward=-3.0), agent())
    torch.testing.assert_close(batch.score - plain.score, -3.0 * unfinished)


def test_dropped_rows_stay_without_a_valid_step(echo, keep_rows):
    plain, unfinished = keep_rows
    data = module(echo, max_new=3, prompts=8, unfinished="drop")
    batch = collected(data, agent())
    assert len(batch) == len(plain) and torch.equal(batch.group, plain.group)
    assert not batch.valid[unfinished].any() and not batch.mask[unfinished].any()
    assert torch.equal(batch.valid[~unfinished], plain.valid[~unfinished])
    fitted(agent(), data)


def test_rejected_ones_are_played_again_and_all_tokens_count(echo, keep_rows):
    plain, unfinished = keep_rows
    data = module(echo, max_new=3, prompts=8, unfinished="reject", resamples=1)
    batch = collected(data, agent())
    unchanged = (batch.obs == plain.obs).all(1)
    assert unchanged[~unfinished].all() and not unchanged[unfinished].all()
    assert data.statistics["played_again"] == pytest.approx(float(unfinished.float().mean()))
    assert data.counters["env_steps"] > int(batch.mask.sum())
    data.resamples = 50
    assert not cut(collected(data, agent()), data).any() and data.statistics["finished"] == 1


def test_one_cut_turn_of_many_is_replaced_alone(walks):
    plain = module(walks, max_new=2)
    changed = module(walks, max_new=2, unfinished="replace", unfinished_reward=-5.0)
    before, after = collected(plain, agent()), collected(changed, agent())
    ends = before.mask & ~torch.cat([before.mask[:, 1:], torch.zeros_like(before.mask[:, :1])], 1)
    unfinished = ends & (before.actions != plain.tokenizer.eos)
    assert unfinished.any() and (ends & ~unfinished).any()
    expected = torch.where(unfinished, -5.0, before.rewards)
    torch.testing.assert_close(after.rewards, expected)


# ---- stop texts


def test_texts_that_stop_end_a_reply_as_eos_does(echo):
    """Replies with the same seeds, up to the first `ant`, `elk` or eos; cut off only if they have none."""
    plain, data = (module(echo, prompts=8, max_new=6, stop=stop) for stop in ([], ["ant", "elk"]))
    actor, prompts, seeds = agent(), data.cases["train"], np.arange(4 * 30)[:, None]
    ends = {data.tokenizer.eos, *data.tokenizer.encode("ant elk")}
    assert data.stops == (data.tokenizer.eos, *data.tokenizer.encode("ant elk"))  # as an export has them
    free, stopped = (variant.conversation.play(actor, prompts, seeds, copies=30) for variant in (plain, data))
    last = set()
    for unstopped, stopped_early in zip(free, stopped, strict=True):
        tokens, turn = unstopped.turns[0].tokens, stopped_early.turns[0]
        first = next((place for place, token in enumerate(tokens) if token in ends), None)
        assert turn.tokens == tokens[: None if first is None else first + 1] and turn.finished == (first is not None)
        assert turn.text == data.tokenizer.decode(tokens[:first])
        assert turn.outcome.parts["ended"] == 0.25 * turn.finished
        last.add(turn.tokens[-1])
    assert ends < last  # each stop ends some replies, and some are cut off
    batch = collected(module(echo, max_new=6, stop=["ant", "elk"], unfinished="replace", unfinished_reward=-3.0), actor)
    assert torch.equal(batch.score != -3, torch.isin(batch.final_obs, torch.tensor(sorted(ends))))


def test_a_prediction_says_which_replies_were_stopped(echo, tmp_path):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Exhibits()],
        default_root_dir=tmp_path,
    )  # fmt: skip
    data = TextDataModule(echo, tokenizer=WordTokenizer(), replies=60, max_new=6, stop=["ant", "bee", "cow", "dog"])
    trainer.predict(agent(), data)
    lines = [json.loads(line) for line in (tmp_path / "predictions" / "replies.jsonl").read_text().splitlines()]
    ends = {data.tokenizer.eos, *data.tokenizer.encode("ant bee cow dog")}
    last = set()
    for line in lines:
        meta = line["meta"]
        for text, tokens, finished in zip(line["responses"], meta["tokens"], meta["finished"], strict=True):
            assert finished == (tokens[-1] in ends) and text == data.tokenizer.decode(tokens[: len(tokens) - finished])
            last.add(tokens[-1])
    assert {data.tokenizer.eos} < last & ends  # eos and a stop text each end some replies


def test_a_stop_that_is_not_one_token_is_refused(echo):
    with pytest.raises(
        ValueError, match="stop: 'ant bee' is 2 tokens .*must be one; give texts that are one token each"
    ):
        module(echo, stop=["ant", "ant bee"])
    with pytest.raises(ValueError, match="stop: the tokenizer has no token for 'gnu'"):
        module(echo, stop=["gnu"])
    with pytest.raises(ValueError, match="stop: .*<pad>"):
        module(echo, stop=["<pad>"])


# ---- chats

TEMPLATE = (
    "{% for m in messages %}say {{ m.role }} {{ m.content }} more {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture
def chat(echo, tmp_path):
    """A folder with a tokenizer of the task's words, and a template with two further words."""
    pytest.importorskip("transformers")
    WordTokenizer().fit([*echo.corpus(), "user assistant please"]).save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


def prompts_of(batch):
    """The ids before each row's reply."""
    firsts = batch.valid.int().argmax(1).tolist()
    return [ids[: first + 1].tolist() for ids, first in zip(batch.obs, firsts, strict=True)]


def test_a_prompt_is_the_message_of_a_user_in_the_models_template(echo, chat):
    """Training, evaluation and the prompts in a prediction equal the template's output from transformers."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(chat)
    torch.manual_seed(0)
    actor = ReinforcePolicy(policy=GRUPolicy(vocabulary=SIZE + 3, width=16), optimizer=torch.optim.Adam)
    how = {"tokenizer": FolderTokenizer(str(chat)), "prompt_suffix": " please", "predict_split": "train"}
    data = module(echo, chat=True, prompts=4, replies=2, **how)

    def templated(split, suffix=" please"):
        chats = [[{"role": "user", "content": case.prompt + suffix}] for case in echo.cases(split)]
        return [reference.apply_chat_template(x, add_generation_prompt=True, return_dict=False) for x in chats]

    expected = templated("train")
    assert reference.decode(expected[0]) == "say user say ant please more assistant"
    assert sorted(prompts_of(collected(data, actor))) == sorted(expected * 2)
    assert prompts_of(data.evaluate(actor, np.random.default_rng(0), True)) == templated("val")
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, lightning_module=actor, default_root_dir="run")
    (batch,) = data.predict_dataloader()[0]
    assert prompts_of(batch) == [ids for ids in expected for _ in range(2)]
    read = [data.tokenizer.encode_prompt(line["prompt"]) for line in data.records(batch)]
    assert read == templated("train", suffix="")  # files have no suffix
    default = module(echo, prompts=4, replies=2, **how)
    assert sorted(prompts_of(collected(default, actor))) == sorted(expected * 2)
    plain = module(echo, chat=False, prompts=4, replies=2, **how)
    assert {len(ids) for ids in prompts_of(collected(plain, actor))} == {3}


def test_a_chat_without_a_template_is_refused(echo, walks, chat):
    with pytest.raises(ValueError, match="^chat: the tokenizer has no chat template: use a FolderTokenizer"):
        module(echo, chat=True)
    (chat / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="^chat: the tokenizer has no chat template"):
        module(echo, chat=True, tokenizer=FolderTokenizer(str(chat)))
    with pytest.raises(ValueError, match="^chat: the tokenizer has no chat template"):
        module(walks, chat=True)


# ---- expected responses


def test_expected_responses_are_rows_of_the_group_that_only_imitation_learns_from(echo):
    data = module(echo, prompts=4, replies=2, expected=ExpectedResponses(share=0.5))
    batch = collected(data, agent())
    assert len(batch) == 10 and batch.group.tolist()[8:] == [0, 1] and batch.rank.tolist()[8:] == [-1, -1]
    assert not batch.mask[8:].any() and torch.equal(batch.expert_mask[8:], batch.valid[8:])
    assert not batch.expert_mask[:8].any() and (batch.score[8:] == 1.25).all()
    for row, first in ((8, 0), (9, 2)):
        assert torch.equal(batch.obs[row, :2], batch.obs[first, :2])
        assert data.tokenizer.decode(batch.actions[row, 1:3].tolist()) == data.tokenizer.decode(
            [int(batch.obs[row, 1])]
        )
    assert data.counters["labels"] == 4 and data.counters["feedback_calls"] == 10
    fitted(agent(JointPolicy, baseline="group_mean", divergence="nll"), data)


# ---- errors and logs


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompts": 0}, "prompts"), ({"replies": 0}, "replies"), ({"max_new": 0}, "max_new"), ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"), ({"temperature": 0}, "temperature: got 0, must be above 0"),
        ({"greedy": True, "best_of": 2}, "greedy: it gives one reply to a prompt"), ({"window": 1}, "window"),
        ({"best_of": 0}, "best_of"),
        ({"evaluation_prompts": 0}, "evaluation_prompts"),
        ({"context": 5}, "train case 'train-ant'.*the 5 tokens of a row"),
        ({"prompt_suffix": " please"}, "train case 'train-ant'.*please"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(echo, wrong, message):
    with pytest.raises(ValueError, match=message):
        module(echo, **wrong)


def test_two_cases_of_one_id_are_refused(echo):
    echo.cases = lambda split: [Case("a", "say ant", {"word": "ant"})] * 2
    with pytest.raises(ValueError, match="train case 'a'"):
        module(echo)


def test_a_run_says_what_it_is_about(echo, walks):
    data, second = module(echo), module(walks, tokenizer=ByteTokenizer())
    assert data.vocabulary == SIZE and data.tokenizer_digest == module(walks).tokenizer_digest
    assert second.tokenizer_digest != data.tokenizer_digest
    assert module(echo).data_digest == data.data_digest != second.data_digest


def test_a_suffix_stands_behind_every_prompt(echo):
    data = module(echo, prompt_suffix=" dog")
    batch = collected(data, agent())
    assert (batch.obs[:, 2] == data.tokenizer.encode("dog")[0]).all() and not batch.mask[:, 1].any()


def test_top_k_of_one_is_the_likeliest_token(echo):
    data = module(echo, top_k=1)
    assert collected(data, agent()).log_probs.abs().max() == 0
    assert data.statistics["no_spread"] == 1


def test_a_temperature_near_zero_is_the_likeliest_token_and_a_high_one_is_any(echo):
    """At 10⁻⁶ every sample is the most likely token; at 10⁶ all 15 ids are equally likely, −log 15 a token."""
    actor = agent()
    cold, hot, warm = (collected(module(echo, temperature=heat), actor) for heat in (1e-6, 1e6, 1.0))
    assert cold.log_probs.abs().max() == 0
    torch.testing.assert_close(hot.log_probs, hot.mask * -math.log(SIZE), atol=1e-4, rtol=0)
    assert torch.equal(warm.actions, collected(module(echo), actor).actions)


def test_a_greedy_prediction_is_the_likeliest_reply_once(echo):
    """The same as the greedy episodes of an evaluation, one per prompt, however many `replies` there are."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data, actor = TextDataModule(echo, tokenizer=WordTokenizer(), max_new=3, replies=12, greedy=True), agent()
    (batch,) = trainer.predict(actor, data)
    prompts = data.cases["test"]
    with torch.no_grad():
        episodes = data.conversation.play(actor, prompts, np.zeros((len(prompts), 1), dtype=np.int64), 1, True)
    replies = [row[valid].tolist() for row, valid in zip(batch.actions, batch.valid, strict=True)]
    assert replies == [episode.turns[0].tokens for episode in episodes]


def test_a_group_without_spread_and_replies_all_cut_are_warned_of_once(echo):
    actor = agent()
    with torch.no_grad():
        actor.policy.head.bias[1] = -1e4  # never stops
    data = module(echo, top_k=1)
    with pytest.warns(UserWarning) as record:
        collected(data, actor), collected(data, actor)
    messages = [str(w.message) for w in record]
    assert (
        sum("max_new" in message for message in messages) == 1 and sum("same" in message for message in messages) == 1
    )


# ---- evaluation, prediction, transcripts


def test_evaluations_play_the_same_prompts_in_order(echo):
    data = module(echo, evaluation_prompts=2, evaluation_replies=5)
    greedy, sampled = (data.evaluate(agent(), np.random.default_rng(1), mode) for mode in (True, False))
    names = [data.tokenizer.decode([int(i)]) for i in greedy.obs[:, 1]]
    assert names == ["elk", "fox"] and len(sampled) == 10
    again = data.evaluate(agent(), np.random.default_rng(2), True)
    assert torch.equal(again.actions, greedy.actions)
    torch.testing.assert_close(greedy.metrics["part/right"] + greedy.metrics["part/ended"], greedy.rewards.sum(1))


def test_windows_are_evaluated_by_episode(walks):
    """Rows are windows that the policy can read; the return and other metrics count episodes, not rows."""
    whole, parts = (module(walks, window=window, evaluation_replies=4) for window in (None, 3))
    metrics = []
    for data in (whole, parts):
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        greedy, sampled = trainer.validate(agent(), data, verbose=False)
        metrics.append(greedy | sampled)
    assert (
        metrics[1] == pytest.approx(metrics[0]) and metrics[0]["val/turns"] == 2 and "val/return_sampled" in metrics[0]
    )
    assert len(parts.evaluate(agent(), np.random.default_rng(0), True)) == 6


def test_what_is_averaged_beside_the_return_is_logged(echo):
    trainer = fitted(agent(), module(echo, reward=PaysLength()), epochs=1, limit_val_batches=1.0)
    names = {"return", "true_reward", "finished", "length", "part/right", "part/ended", "finished_sampled"}
    assert {f"val/{name}" for name in names} <= set(trainer.callback_metrics)


def test_predictions_are_one_line_a_prompt(echo, tmp_path):
    """Lines have no empty replies, but their number."""
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Exhibits()],
        default_root_dir=tmp_path,
    )  # fmt: skip
    data = TextDataModule(echo, tokenizer=WordTokenizer(), replies=12, max_new=3, predict_split="train")
    (batch,) = trainer.predict(agent(), data)
    lines = [json.loads(line) for line in (tmp_path / "predictions" / "replies.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [case.id for case in echo.cases("train")]
    empty = 0
    for place, line in enumerate(lines):
        assert line["prompt"] == f"say {line['id'].removeprefix('train-')}"
        rows = range(12 * place, 12 * place + 12)
        texts = [data.tokenizer.decode(batch.actions[row][batch.valid[row]].tolist()) for row in rows]
        scores = batch.rewards.sum(1)[rows].tolist()
        pairs = [(text, score) for text, score in zip(texts, scores, strict=True) if text]
        assert list(zip(line["responses"], line["score"], strict=True)) == pairs
        assert line["meta"]["empty"] == 12 - len(pairs) and line["meta"]["run"] == tmp_path.name
        empty += 12 - len(pairs)
    assert 0 < empty < 24


def test_a_prediction_may_keep_the_best_of_several(echo, tmp_path):
    """Of the twelve replies to each prompt the one with the highest reward, the first of equals."""

    def predicted(**how):
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            callbacks=[Exhibits()], default_root_dir=tmp_path,
        )  # fmt: skip
        data = TextDataModule(echo, tokenizer=WordTokenizer(), max_new=4, reward=PaysLength(), **how)
        (batch,) = trainer.predict(agent(), data)
        return batch, (tmp_path / "predictions" / "replies.jsonl").read_text().splitlines()

    all_of_them, _ = predicted(replies=12)
    best, lines = predicted(replies=3, best_of=12)
    scores = all_of_them.rewards.sum(1).view(2, 12)
    assert best.group.tolist() == [0, 1] and scores.unique().numel() > 1
    rows = scores.argmax(1) + torch.tensor([0, 12])
    width = best.actions.shape[1]
    assert torch.equal(best.actions, all_of_them.actions[rows, :width])
    for line, score in zip(map(json.loads, lines), scores.max(1).values.tolist(), strict=True):
        assert line["score"] == [score] and len(line["responses"]) == 1


@pytest.mark.parametrize("silent", [True, False])
def test_a_prompt_without_a_reply_that_says_something_is_told_of(echo, tmp_path, silent):
    """A policy that ends every reply at once leaves an empty file, with 70 prompts in two batches."""
    actor = agent()
    with torch.no_grad():
        actor.policy.head.bias[1] += 100.0 if silent else -100.0
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Exhibits()],
        default_root_dir=tmp_path,
    )  # fmt: skip
    settings = {"replies": 2, "max_new": 3, "predict_split": "train", "evaluation_prompts": None}
    data = TextDataModule(Many(), tokenizer=WordTokenizer(), **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.predict(actor, data)
    messages = [str(warning.message) for warning in caught if "replies.jsonl" in str(warning.message)]
    lines = (tmp_path / "predictions" / "replies.jsonl").read_text().splitlines()
    if silent:
        assert (
            lines == []
            and len(messages) == 1
            and messages[0].startswith("70 of 70 prompts are missing in replies.jsonl: every")
        )
    else:
        assert len(lines) == 70 and messages == []


def test_people_can_read_a_transcript(echo, tmp_path):
    data = module(echo)
    assert data.exhibits(tmp_path) == []
    data.evaluate(agent(), np.random.default_rng(0), True)
    data.counters["iteration"] = 7
    markdown, html, archived = (path.read_text() for path in data.exhibits(tmp_path))
    assert archived == html == (tmp_path / "transcripts" / "iteration-00007.html").read_text()
    assert markdown.splitlines()[0] == "| prompt | reply | score | parts | expected |"
    assert "| say elk |" in markdown and '<td class="expected">elk</td>' in html
    scored = module(echo, reward=PaysLength())
    scored.evaluate(agent(), np.random.default_rng(0), True)
    markdown, _, _ = (path.read_text() for path in scored.exhibits(tmp_path))
    assert markdown.splitlines()[0] == "| prompt | reply | score | true reward | parts | expected |"
