"""Injection: an expert continues the learner's replies; masks, rewards and costs."""

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.takeover import Geometric, Takeover, Uniform, Window
from data_modules.text import AtFirstError, ByteTokenizer, Injection, TextDataModule, WordTokenizer
from data_modules.text.environment import Case, Outcome
from data_modules.text.rows import EXPERT, LEARNER, Segment
from data_modules.text.taken_over import before
from data_modules.text.unfinished import cut_short
from data_modules.value_trigger import ValueTriggered
from lightning_nlf.experts import PolicyTextExpert
from lightning_nlf.networks import GRUPolicy, GRUValue
from lightning_nlf.objectives import (
    ActorCriticAgent,
    InjectionAgent,
    InjectionPolicy,
    ReinforcePolicy,
    ShapedInjectionPolicy,
    WeightedInjectionPolicy,
)
from lightning_nlf.objectives.policy_gradient import importance_ratio

WORDS = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite")
SIZE = 15  # ids: twelve words and three special tokens
MAX_NEW = 5


class Said:
    """One turn: 1 for the expected reply, and .25 for a reply that is not cut off."""

    def __init__(self, expected):
        self.expected = expected

    def reply(self, text, finished):
        return Outcome((text == self.expected) + 0.25 * finished)


class Chants:
    """Say `ant bee`, and stop. Words from `fox` on are errors; so is a reply of less than two words."""

    turns = 1

    def cases(self, split):
        words = WORDS[:8] if split == "train" else WORDS[8:]
        return [Case(word, f"say {word}", {"word": word}) for word in words]

    def begin(self, case):
        return Said(self.expected(case))

    def corpus(self):
        yield "say " + " ".join(WORDS)

    def expected(self, case):
        return "ant bee"

    def spans(self, case, reply):
        at, errors = 0, []
        for word in reply.split():
            if word >= "fox":
                errors.append((at, at + len(word)))
            at += len(word) + 1
        return errors if errors or len(reply.split()) > 1 else [(len(reply), len(reply))]


class At(Takeover):
    """The expert takes over at token n of every chosen reply."""

    def __init__(self, n):
        self.n = n

    def plan(self, episodes, horizon, typical_length, rng, experience=0):
        self.call = (episodes, horizon, typical_length, experience)
        return (torch.arange(horizon) >= self.n).expand(episodes, -1)


def network(seed, stop=2.5):
    torch.manual_seed(seed)
    policy = GRUPolicy(vocabulary=SIZE, width=16)
    with torch.no_grad():
        policy.head.weight *= 3  # an untrained head is nearly uniform, and would hide rows in the wrong order
        policy.head.bias[1] += stop  # the stop token: some replies end, some are cut off
    return policy


def agent(kind=ReinforcePolicy, seed=0, stop=0.5, **kw):
    policy = network(seed, stop)
    if kind in (ActorCriticAgent, InjectionAgent):
        kw["value"] = GRUValue(vocabulary=SIZE, width=16)
    return kind(policy=policy, optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01), **kw)


EXPERT_SEED = 7


def injection(takeover, stop=1.0, **kw):
    return Injection(PolicyTextExpert(network(EXPERT_SEED, stop)), takeover, **kw)


def module(task=None, **kw):
    settings = {"tokenizer": WordTokenizer(), "prompts": 8, "replies": 3, "max_new": MAX_NEW}
    data = TextDataModule(task or Chants(), **(settings | kw))
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    return data


def collected(data, actor=None, seed=3):
    return data.collect(actor or agent(), np.random.default_rng(seed))


def fitted(actor, data, epochs=2, **kw):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(actor, data, **kw)
    return trainer


def replies(batch):
    """The tokens of each row's reply."""
    return [row[valid].tolist() for row, valid in zip(batch.actions, batch.valid, strict=True)]


LAST = torch.arange(24) % 3 == 2  # the reply to each prompt that the expert may take over


# ---- speakers


@pytest.mark.parametrize("n", [0, 1, 3])
def test_the_expert_goes_on_from_the_learners_first_tokens(n):
    """Replies that end before stay as they are; the others keep n tokens, and other rows keep all."""
    plain, batch = collected(module()), collected(module(injection=injection(At(n))))
    counts = plain.valid.sum(1)
    stopped = plain.final_obs == module().tokenizer.eos
    injected_rows = LAST & ~(stopped & (counts <= n))
    assert injected_rows.any() and (n < 2 or (LAST & ~injected_rows).any())
    kept_tokens = torch.where(injected_rows, n, counts)
    assert torch.equal(batch.mask.sum(1), kept_tokens)
    assert torch.equal((batch.valid & ~batch.mask).any(1), injected_rows)
    assert torch.equal(batch.expert_mask, batch.valid & ~batch.mask)
    for row, (reply, alone) in enumerate(zip(replies(batch), replies(plain), strict=True)):
        assert reply[: kept_tokens[row]] == alone[: kept_tokens[row]] and len(reply) <= MAX_NEW
        if not injected_rows[row]:
            assert reply == alone
    assert torch.equal(batch.group, plain.group) and torch.equal(batch.expert_actions, batch.actions)


def test_at_the_end_there_is_no_injection():
    plain, batch = collected(module()), collected(module(injection=injection(At(MAX_NEW))))
    for name in ("obs", "actions", "valid", "mask", "log_probs", "rewards", "score", "rank", "expert_mask"):
        assert torch.equal(getattr(batch, name), getattr(plain, name)), name


def test_stored_log_probs_are_those_of_whoever_spoke():
    """So the learner's first ratio is 1, and injected tokens have the expert's own log-probability."""
    actor, taking = agent(), injection(At(2), injected=2)
    batch = collected(module(injection=taking), actor)
    injected = batch.valid & ~batch.mask
    assert injected.sum() > 20
    now = actor.evaluate(batch)
    ratio = importance_ratio(now.log_probs, batch.log_probs, batch.mask)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-4)
    with torch.no_grad():
        expert = taking.expert.policy(batch.obs).log_prob(batch.actions)
    torch.testing.assert_close(expert[injected], batch.log_probs[injected], rtol=0, atol=1e-4)
    assert (expert - now.log_probs)[injected].abs().max() > 0.1


def test_the_expert_samples_from_all_that_it_may_say():
    """`top_k` is for the learner only."""
    batch = collected(module(injection=injection(At(1)), top_k=1))
    injected = batch.valid & ~batch.mask
    assert (batch.log_probs[batch.mask] == 0).all() and (batch.log_probs[injected] < -0.1).any()


@pytest.mark.parametrize("injected", [1, 2, 3])
def test_so_many_replies_of_each_prompt_are_taken_over(injected):
    batch = collected(module(injection=injection(At(0), injected=injected)))
    injected_rows = (~batch.mask.any(1)).view(-1, 3)
    assert injected_rows[:, 3 - injected :].all() and not injected_rows[:, : 3 - injected].any()


def test_the_whole_reply_is_paid_at_its_end():
    data = module(injection=injection(At(1)))
    batch = collected(data)
    cases = {tuple(prompt.ids): prompt.case for prompt in data.cases["train"]}
    later = batch.valid & torch.cat([batch.valid[:, 1:], torch.zeros(len(batch), 1, dtype=torch.bool)], 1)
    assert (batch.rewards[later | ~batch.valid] == 0).all()
    for row, reply in enumerate(replies(batch)):
        case = cases[tuple(batch.obs[row, :2].tolist())]
        finished = reply[-1] == data.tokenizer.eos
        reward = data.task.begin(case).reply(data.tokenizer.decode(reply), finished).reward
        assert float(batch.rewards[row].sum()) == pytest.approx(reward) == float(batch.score[row])
    assert len(batch.score.unique()) > 1


def test_a_plan_hears_of_the_replies_before():
    """8 chosen replies of at most 5 tokens; then the mean length and the tokens of the first collection."""
    data = module(injection=injection(At(2)))
    first = collected(data)
    assert data.injection.takeover.call == (8, MAX_NEW, MAX_NEW, 0)
    collected(data)
    typical = float(first.valid.sum() / 24)
    assert data.injection.takeover.call == (8, MAX_NEW, pytest.approx(typical), int(first.valid.sum()))


# ---- at the first error


@pytest.mark.parametrize(
    ("character", "count"), [(0, 0), (2, 0), (4, 1), (6, 1), (8, 2), (11, 3)]
)  # ant bee cow, and after it
def test_the_token_that_says_a_character(character, count):
    words = WordTokenizer().fit(["ant bee cow"])
    assert before(words.encode("ant bee cow"), character, words) == count
    by_byte = ByteTokenizer().fit()
    assert before(by_byte.encode("ant bee cow"), character, by_byte) == character


def test_the_expert_takes_over_at_the_first_error():
    """The tokens that the learner keeps are right, and its next token was wrong."""
    data = module(injection=injection(AtFirstError(), injected=4), replies=6)
    plain, batch = collected(module(replies=6)), collected(data)
    right = {0, 2, *data.tokenizer.encode("ant bee cow dog elk")}  # <pad> and <unk> come before fox, too
    lengths = set()
    for row, (reply, alone) in enumerate(zip(replies(batch), replies(plain), strict=True)):
        errors = [place for place, token in enumerate(alone) if token not in right | {data.tokenizer.eos}]
        if not errors and alone[-1] == data.tokenizer.eos and len(alone) < 3:
            errors = [len(alone) - 1]
        chosen = row % 6 > 1
        length = errors[0] if chosen and errors else len(alone)
        assert int(batch.mask[row].sum()) == length and reply[:length] == alone[:length]
        assert (len(reply) > length) == bool(chosen and errors)
        lengths |= {length} if chosen else set()
    assert lengths >= {0, 1, 2}


def test_two_together_say_no_more_than_one_alone_may():
    """The expert never stops, and continues prefixes of several lengths: up to `max_new` tokens in all."""
    batch = collected(module(injection=injection(AtFirstError(), stop=-9.0, injected=3)))
    learner_counts, injected_rows = batch.mask.sum(1), (batch.valid & ~batch.mask).any(1)
    assert len(learner_counts[injected_rows].unique()) > 1 and (batch.valid.sum(1)[injected_rows] == MAX_NEW).all()


def test_what_the_expert_says_does_not_depend_on_other_replies():
    few, many = (collected(module(injection=injection(At(1), injected=n))) for n in (1, 3))
    for row in LAST.nonzero()[:, 0]:
        assert replies(few)[row] == replies(many)[row]


# ---- by the learner's values


def fearful(values):
    """A learner whose critic gives `values` to the tokens of each reply, in order."""
    actor = agent()
    actor.policy.head.bias.data[1] = -1e4  # it never stops: every reply has MAX_NEW tokens
    actor.token_values = lambda batch: torch.zeros(batch.mask.shape).masked_scatter(
        batch.mask, torch.tensor(values).expand(int(batch.mask.any(1).sum()), -1)
    )
    return actor


def test_the_critic_calls_the_expert():
    """The first collection has nothing to compare with; in the second the values of tokens three and four are low."""
    data = module(injection=injection(ValueTriggered(0.01, length=MAX_NEW)))
    first = collected(data, fearful([0.0, -1, -2, -3, -4]))
    assert not first.expert_mask.any()
    batch = collected(data, fearful([0.0, -1, -50, -100, 0]))
    assert batch.mask.sum(1).tolist() == [5, 5, 2] * 8
    assert data.counters["env_steps"] == 24 * 5 + int(batch.valid.sum()) + 8 * 3  # three tokens each are discarded


def test_values_of_tokens_are_the_critics():
    actor = agent(ActorCriticAgent)
    batch = collected(module(), actor)
    values = actor.token_values(batch)
    torch.testing.assert_close(values[batch.valid], actor.value(batch.obs, batch.valid))
    assert (values[~batch.valid] == 0).all()
    with pytest.raises(ValueError, match="takeover"):
        agent().token_values(batch)


# ---- counters and logs


def test_a_plan_costs_what_is_said_and_nothing_more():
    data = module(injection=injection(At(2)))
    batch = collected(data)
    injected = int((batch.valid & ~batch.mask).sum())
    counted = {"env_steps": int(batch.valid.sum()), "expert_steps": injected, "labels": injected, "feedback_calls": 24}
    assert {name: data.counters[name] for name in counted} == counted


def test_a_look_at_the_whole_reply_costs_all_of_it_and_a_critique():
    plain, data = module(), module(injection=injection(AtFirstError()))
    alone, batch = collected(plain), collected(data)
    injected = int((batch.valid & ~batch.mask).sum())
    assert data.counters["expert_steps"] == injected
    assert data.counters["env_steps"] == int(alone.valid.sum()) + injected
    assert data.counters["feedback_calls"] == 24 + 8


def test_returns_are_told_apart():
    data = module(injection=injection(At(0)))
    batch = collected(data)
    statistics = data.statistics
    assert statistics["return"] == pytest.approx(float(batch.score[~LAST].mean()))
    assert statistics["return_taken_over"] == pytest.approx(float(batch.score[LAST].mean()))
    assert statistics["taken_over"] == pytest.approx(1 / 3)
    assert statistics["length"] == pytest.approx(float(batch.valid[~LAST].sum(1).float().mean()))
    everything = module(injection=injection(At(0), injected=3))
    collected(everything)
    assert "return" not in everything.statistics and everything.statistics["taken_over"] == 1


# ---- cut replies


def test_a_reply_of_two_is_cut_where_the_second_stops_short():
    """Prompt 5 6; learner 7, expert 8 9 is cut, and its steps are actions 1, 2, 3; with 0 at the end it is finished.

    The learner's part alone does not count as cut.
    """
    prompt, begun = Segment([5, 6]), Segment([7], LEARNER)
    dialogues = [[prompt, begun, Segment([8, 9], EXPERT)], [prompt, begun, Segment([8, 0], EXPERT)], [prompt, begun]]
    steps, ends = cut_short(dialogues, (0,), torch.zeros(3, 4))
    assert steps.tolist() == [[False, True, True, True], [False] * 4, [False, True, False, False]]
    assert ends.nonzero().tolist() == [[0, 3], [2, 1]]


def test_of_a_reply_that_the_expert_did_not_end_nobody_learns_if_it_is_dropped():
    keep_rows = collected(module(injection=injection(At(1), stop=-9.0)))
    batch = collected(module(injection=injection(At(1), stop=-9.0), unfinished="drop"))
    cut = keep_rows.final_obs != WordTokenizer().fit(Chants().corpus()).eos
    injected_rows = (keep_rows.valid & ~keep_rows.mask).any(1)
    assert (cut & injected_rows).any() and not (batch.valid | batch.expert_mask)[cut].any()
    assert torch.equal(batch.valid[~cut], keep_rows.valid[~cut])


def test_a_reply_that_the_expert_did_not_end_is_not_played_again():
    data = module(injection=injection(At(1), stop=-9.0), unfinished="reject", resamples=60)
    batch = collected(data, agent(stop=3.0))
    cut = batch.final_obs != data.tokenizer.eos
    assert cut.any() and torch.equal(cut, (batch.valid & ~batch.mask).any(1))


# ---- whole runs


@pytest.mark.parametrize(
    ("kind", "takeover", "knobs"),
    [
        (InjectionPolicy, Uniform(0.5), {"divergence": "nll", "baseline": "group_mean"}),
        (WeightedInjectionPolicy, Geometric(0.4), {"baseline": "shared_group_mean"}),
        (ShapedInjectionPolicy, AtFirstError(), {"relative": False, "clip": 0.2}),
        (InjectionAgent, ValueTriggered(0.3, length=MAX_NEW), {"divergence": "nll", "cut_at_takeover": True}),
    ],
)
def test_a_run_that_is_resumed_ends_alike(kind, takeover, knobs, tmp_path):
    def new_data():
        taking = ValueTriggered(0.3, length=MAX_NEW) if isinstance(takeover, ValueTriggered) else takeover
        return module(injection=injection(taking), minibatches=2, passes=2)

    straight, data = agent(kind, **knobs), new_data()
    fitted(straight, data, epochs=4)
    assert data.counters["expert_steps"] > 0
    fitted(agent(kind, **knobs), new_data()).save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    resumed, again = agent(kind, seed=1, **knobs), new_data()
    fitted(resumed, again, epochs=4, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for weight, expected in zip(resumed.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)
    assert again.counters == data.counters


@pytest.mark.slow
def test_what_the_expert_shows_is_learned():
    """The expert says `ant bee` and stops; without it the learner gets there about once in a thousand replies."""

    class Sure:
        def reply(self, ids, lengths, state=None, **how):
            tokens = torch.tensor([[*WordTokenizer().fit(Chants().corpus()).encode("ant bee"), 1]])
            return tokens.expand(len(ids), -1), torch.zeros(len(ids), 3), torch.full((len(ids),), 3), None

        def label(self, obs, where):
            raise AssertionError("nobody asks")

    def after(kind, taking, **knobs):
        actor = agent(kind, gamma=1.0, **knobs)
        data = module(injection=taking, evaluation_replies=50)
        fitted(actor, data, epochs=60)
        return float(data.evaluate(actor, np.random.default_rng(0), False).rewards.sum(1).mean())

    alone = after(ReinforcePolicy, None, baseline="group_mean")
    with_expert = after(ShapedInjectionPolicy, Injection(Sure(), At(0)), baseline="shared_group_mean")
    assert alone < 0.3 and with_expert > 0.6


# ---- errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"takeover": Window(2, 1.0)}, "injection.takeover: Window returns control"),
        ({"takeover": ValueTriggered(0.1, length=MAX_NEW - 1)}, "injection.takeover.length"),
        ({"takeover": At(0), "injected": 0}, "injection.injected: got 0"),
        ({"takeover": At(0), "injected": 4}, "injection.injected: got 4"),
        ({"takeover": AtFirstError(), "task": "echo"}, "injection.takeover.*Echo has none"),
        ({"takeover": At(0), "task": "walks"}, "injection: Walks has 3 turns"),
    ],
)
def test_wrong_arguments_are_named(wrong, message, request):
    task = request.getfixturevalue(wrong["task"]) if "task" in wrong else None
    wrong = {name: value for name, value in wrong.items() if name != "task"}
    with pytest.raises(ValueError, match=message):
        collected(module(task, injection=injection(**wrong)))


def test_an_expert_of_other_ids_is_refused():
    taking = injection(At(0))
    taking.expert.policy.tokenizer_digest = "another"
    with pytest.raises(ValueError, match="injection.expert: the model was trained with a different tokenizer"):
        module(injection=taking)
