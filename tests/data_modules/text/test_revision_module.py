"""Rounds of critique and revision: prompts, rows, views, control experiments and costs."""

import copy
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.tasks.phrases import Phrases
from data_modules.text import RevisionDataModule, WordTokenizer
from lightning_nlf.experts import PolicyTextExpert
from lightning_nlf.networks import DecoderShape, GRUPolicy, TransformerPolicy
from lightning_nlf.objectives import (
    C3POPolicy,
    CritiqueGRPOPolicy,
    FirstTurnPolicy,
    ImitationPolicy,
    JointPolicy,
    ReinforcePolicy,
    RLSDPolicy,
    SDPOPolicy,
    SRPOPolicy,
)
from tests.data_modules.text.conftest import WORDS, Echo

ANSWER, CRITIQUE, REVISION = "answer", "critique", "revision"


class Revisable(Echo, Phrases):
    """The critique names the right word; a right reply has none."""

    def corpus(self):
        yield from super().corpus()
        yield self.words() + " no , it is"

    def critique(self, case, reply, seed):
        return None if reply == case.facts["word"] else f"no , it is {case.facts['word']} ."


class Scripted:
    """An actor that says the word after `it is` if there is a critique, and otherwise `wrong`."""

    def __init__(self, tokenizer, wrong="fox", right_for=()):
        self.tokenizer, self.wrong, self.right_for = tokenizer, wrong, right_for
        self.read = []

    def reply(self, ids, lengths, state=None, *, stop, copies=1, **how):
        replies = []
        for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
            words = self.tokenizer.decode(row[:length]).split()
            self.read.append(" ".join(words))
            if CRITIQUE in words:
                word = words[words.index(CRITIQUE) + 6] if "no" in words else self.wrong
            else:
                word = words[1] if words[1] in self.right_for else self.wrong
            replies += [[*self.tokenizer.encode(word), stop[0]]] * copies
        tokens = torch.tensor(replies)
        return tokens, torch.full(tokens.shape, -0.5), torch.full((len(replies),), 2), None

    def prepare(self, batch):
        return batch


def module(**kw):
    settings = {"tokenizer": WordTokenizer(), "prompts": 4, "replies": 2, "max_new": 3, "context": 40}
    data = RevisionDataModule(Revisable(), **(settings | kw))
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    return data


def collected(data, actor=None, seed=1):
    return data.collect(actor or Scripted(data.tokenizer), np.random.default_rng(seed))


def decided(batch):
    """The batch without the idle rows of prompts that gave none."""
    return batch[batch.valid.any(1)]


def texts(data, batch, steps=None):
    """Each row as text: all of it, or only its valid tokens."""
    rows = []
    for row in range(len(batch)):
        if steps is None:
            ids = [*batch.obs[row].tolist(), int(batch.final_obs[row])]
            last = int(batch.valid[row].nonzero()[-1]) + 2 if batch.valid[row].any() else 0
            ids = torch.cat([batch.obs[row, :1], batch.actions[row]])[:last].tolist()
        else:
            ids = batch.actions[row][steps[row]].tolist()
        rows.append(data.tokenizer.decode(ids))
    return rows


def test_a_revision_is_written_behind_the_critique_and_learned_behind_the_prompt_alone():
    data = module()
    batch = collected(data)
    attempts, revisions = batch[batch.extra["attempt"]], batch[batch.extra["revision"]]
    assert len(attempts) == len(revisions) == 8
    assert set(texts(data, attempts, attempts.mask)) == {"fox"}
    for text in texts(data, revisions):
        words = text.removesuffix(" <eos>").split()
        assert words[0] == "say" and words[1] == words[2] and len(words) == 3  # say dog dog: as the critique has it
    assert not revisions.mask.any() and torch.equal(revisions.valid, revisions.expert_mask)
    assert set(revisions.log_probs[revisions.valid].tolist()) == {-0.5}  # the reviser's own
    rewards = torch.where(revisions.valid, revisions.rewards, 0).sum(1)
    assert rewards.tolist() == [1.25] * 8  # 1 for the word and .25 for the end
    assert data.statistics["gain"] == pytest.approx(1.0) and data.statistics["criticised"] == 1


def test_the_view_holds_the_same_actions_behind_the_critique():
    data = module()
    batch = collected(data, Scripted(data.tokenizer, right_for=("ant",)))
    for row in range(len(batch)):
        in_view, steps = batch.view.valid[row], batch.valid[row]
        if texts(data, batch)[row].startswith("say ant"):
            assert batch.extra["attempt"][row] and not in_view.any()  # right: there was nothing to say
            continue
        assert batch.view.actions[row][in_view].tolist() == batch.actions[row][steps].tolist()
        text = texts(data, batch.view)[row]
        word = texts(data, batch)[row].split()[1]
        assert text.startswith(f"say {word} answer : fox critique : no , it is {word} . revision :")


def test_rows_of_one_prompt_share_a_group():
    batch = collected(module())
    assert batch.group.bincount().tolist() == [4] * 4  # two attempts and a revision of each
    prompts = {int(g): {int(x) for x in batch.obs[batch.group == g, 1]} for g in batch.group.unique()}
    assert all(len(words) == 1 for words in prompts.values())


def test_pairs_are_ranked_and_both_are_the_learners():
    data = module(learn=["pairs"], revisions=2)
    batch = decided(collected(data, Scripted(data.tokenizer, right_for=("ant",))))
    assert batch.mask.any(1).all() and sorted(batch.rank.tolist()) == [0] * 12 + [1] * 6  # ant was right
    assert {text for text, rank in zip(texts(data, batch, batch.mask), batch.rank, strict=True) if rank == 1} == {"fox"}


def test_a_revision_is_compared_with_its_own_attempt_alone():
    batch = collected(module(learn=["pairs"], revisions=2))  # 8 wrong attempts, two to a prompt
    assert batch.group.bincount().tolist() == [3] * 8
    assert all(sorted(batch.rank[batch.group == g].tolist()) == [0, 0, 1] for g in range(8))


def test_critiques_conditions_and_hindsight_are_imitated():
    data = module(learn=["critiques", "conditioned", "hindsight"], replies=1)
    batch = collected(data, Scripted(data.tokenizer, right_for=("ant",)))
    assert not batch.mask.any() and torch.equal(batch.expert_mask, batch.valid)
    rows = {text.removesuffix(" <eos>") for text in texts(data, batch)}
    for word in WORDS[1:4]:
        assert f"say {word} answer : fox critique : no , it is {word} ." in rows
        assert f"say {word} critique : no , it is {word} . answer : fox" in rows
        hindsight = [f"say {word} bad answer : fox <eos> good answer : {word}"]
        hindsight += [f"say {word} good answer : {word} <eos> bad answer : fox"]
        assert len(rows & set(hindsight)) == 1
    assert "say ant answer : ant critique : nothing is wrong ." in rows
    assert "say ant critique : nothing is wrong . answer : ant" in rows


class Stubborn(Scripted):
    """Wrong after all critiques but those of `ant`, so only these revisions are better."""

    def reply(self, ids, lengths, *rest, **how):
        tokens, log_probs, lengths, state = super().reply(ids, lengths, *rest, **how)
        ant, fox = self.tokenizer.encode("ant fox")
        tokens[:, 0] = torch.where(tokens[:, 0] == ant, ant, fox)
        return tokens, log_probs, lengths, state


def test_keep_chooses_revisions_by_their_score():
    counts = {}
    for keep in ("all", "best", "better"):
        data = module(learn=["revisions"], keep=keep, revisions=3)
        counts[keep] = len(decided(collected(data, Stubborn(data.tokenizer))))
    assert counts == {"all": 24, "best": 8, "better": 6}


def test_what_the_teacher_approves_is_kept_without_any_score():
    """8 attempts and 24 revisions are criticised, of which the six of `ant` are right; nothing is scored."""
    data = module(learn=["revisions"], keep="approved", revisions=3, scored=False)
    rows = decided(collected(data, Stubborn(data.tokenizer)))
    assert len(rows) == 6 and set(texts(data, rows)) == {"say ant ant"}
    assert rows.rewards is None and rows.score.isnan().all()
    assert data.counters["critiques"] == data.counters["feedback_calls"] == 8 + 24
    twice = module(learn=["revisions"], keep="approved", scored=False, rounds=2)
    rows = decided(collected(twice, Slow(twice.tokenizer)))
    assert len(rows) == 8 and twice.counters["critiques"] == 8 + 8 + 6  # the two of `bee` were right at first


def test_the_controls_say_what_does_not_help():
    """A shuffled critique is another prompt's, so no revision is right; a placebo names no word."""
    for words, gain in (("task", 1.0), ("shuffled", 0.0), ("placebo", 0.0)):
        data = module(words=words, replies=2)
        actor = Scripted(data.tokenizer)
        collected(data, actor)
        assert data.statistics["gain"] == pytest.approx(gain), words
    assert all("please try again ." in text for text in actor.read[4:])


class Slow(Scripted):
    """Says `fox` first, `bee` after a critique of that, and the right word after a critique of `bee`."""

    def reply(self, ids, lengths, *rest, copies=1, **how):
        tokens, *remaining = super().reply(ids, lengths, *rest, copies=copies, **how)
        bee, fox = self.tokenizer.encode("bee fox")
        for row, text in enumerate(self.read[-len(lengths) :]):
            if CRITIQUE not in text or "answer : fox" in text:
                tokens[row * copies : (row + 1) * copies, 0] = bee if CRITIQUE in text else fox
        return tokens, *remaining


def test_rounds_revise_the_revision():
    """The first revision is wrong too; it is quoted and criticised again."""
    data = module(rounds=2, learn=["revisions"], replies=1)
    actor = Slow(data.tokenizer)
    batch = collected(data, actor)
    assert any("answer : bee critique : no , it is dog ." in text for text in actor.read)
    assert len(batch) == 7  # four first revisions; that of `bee` was right, and is not revised again
    assert data.counters["critiques"] == 4 + 4
    assert data.counters["feedback_calls"] == 8 + 4 + 7


def test_pairs_of_several_rounds_are_one_order():
    """fox < bee < dog: `bee` is better than one reply and worse than another, and still is in one row."""
    data = module(rounds=2, learn=["pairs"], replies=1)
    batch = collected(data, Slow(data.tokenizer))
    ranked = {}
    for text, rank in zip(texts(data, batch), batch.rank.tolist(), strict=True):
        _, word, reply = text.split()
        ranked.setdefault(word, []).append((reply, rank))
    assert ranked.pop("bee") == [("fox", 2), ("bee", 0)]  # the first revision was right
    assert ranked == {word: [("fox", 2), ("bee", 1), (word, 0)] for word in ("ant", "cow", "dog")}


def test_what_comes_first_in_hindsight_takes_turns_whatever_else_is_learned():
    for learn in (["hindsight"], ["revisions", "hindsight"], ["pairs", "hindsight"]):
        rows = texts(data := module(learn=learn), collected(data))
        first = [text.split()[2] for text in rows if text.count("answer :") == 2]
        assert first.count("good") == first.count("bad") == 4, learn


def test_what_a_batch_has_depends_on_the_knobs_alone():
    """A rank with revisions and one without have the same fields, so that sums over ranks match."""
    for learn in (["hindsight"], ["critiques"], ["revisions"], ["revisions", "critiques"], ["pairs"]):
        for scored in (True, False):
            data = module(learn=learn, scored=scored)
            with_revision = collected(data, Scripted(data.tokenizer))
            none = collected(data, Scripted(data.tokenizer, right_for=WORDS))
            assert (with_revision.rewards is not None) == (none.rewards is not None) == scored, learn
            assert (with_revision.view is None) == (none.view is None)
            assert with_revision.extra.keys() == none.extra.keys()


def test_a_prompt_of_which_nothing_is_learned_stays_a_group():
    """One of four prompts has a wrong reply. Four minibatches or four ranks are still possible."""
    data = module(learn=["pairs"], minibatches=4)
    batch = collected(data, Scripted(data.tokenizer, right_for=WORDS[1:4]))
    idle = ~batch.valid.any(1)
    assert batch.group.unique().tolist() == list(range(8)) and idle.sum() == 6  # two attempts a prompt
    assert not batch.mask[idle].any() and not batch.expert_mask[idle].any() and (batch.rank[idle] == -1).all()
    assert not batch.rewards[idle].any() and batch.score[idle].isnan().all()
    assert len(list(data.cut(batch, np.random.default_rng(0)))) == 4
    assert sorted(batch.rank[~idle].tolist()) == [0, 0, 1, 1]


@pytest.mark.filterwarnings("ignore:rank. no group has two ranked replies")
@pytest.mark.parametrize(
    ("kind", "learn", "knobs"),
    [
        (FirstTurnPolicy, ["attempts", "revisions"], {}),
        (CritiqueGRPOPolicy, ["attempts", "revisions"], {}),
        (RLSDPolicy, ["attempts"], {}),
        (SRPOPolicy, ["attempts"], {"success": 1.0}),
        (SDPOPolicy, ["attempts"], {}),
        (C3POPolicy, ["pairs"], {"divergence": "nll"}),
        (ImitationPolicy, ["hindsight"], {"divergence": "nll"}),
        (JointPolicy, ["attempts", "critiques"], {"divergence": "nll"}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_every_method_goes_on_whatever_a_round_gives(kind, learn, knobs):
    """All, some or no replies wrong: the same number of optimizer steps; without rows a step changes nothing."""
    torch.manual_seed(0)
    for right in ((), WORDS[:2], WORDS):
        data = module(learn=learn, minibatches=2)
        shape = DecoderShape(vocabulary=data.vocabulary, layers=1, heads=2, width=16, context=40)
        agent = kind(policy=TransformerPolicy(shape), **knobs)
        batch = agent.prepare(collected(data, Scripted(data.tokenizer, right_for=right)))
        parts = list(data.cut(batch, np.random.default_rng(0)))
        assert len(parts) == 2
        for part in parts:
            agent.zero_grad()
            loss = sum(agent.losses(part).values())
            loss.backward()
            assert loss.isfinite()
            if not part.valid.any():
                assert loss == 0 and all(not p.grad.any() for p in agent.parameters() if p.grad is not None)


def test_without_scores_nobody_can_learn_by_them():
    assert not collected(module()).score.isnan().any()
    assert collected(module(scored=False)).score.isnan().all()


def test_the_teacher_speaks_of_its_scope_alone():
    """The scope is `say ant`; its two replies cost a critique, a revision and their scores."""
    data = module(scope={"word": "ant"})
    batch = collected(data)
    assert set(texts(data, decided(batch))) == {"say ant fox", "say ant ant"}
    assert data.counters["critiques"] == 2 and data.counters["feedback_calls"] == 2 + 8 + 2
    assert data.statistics["criticised"] == 1
    assert len(batch.group.unique()) == 4  # the other prompts, of which nothing is learned


def test_a_scope_without_a_prompt_teaches_nothing():
    data = module(scope={"word": "none"}, learn=["pairs"])
    batch = collected(data)
    assert not batch.valid.any() and data.counters["critiques"] == 0


def test_anchors_are_what_the_reviser_says_out_of_scope():
    tokenizer = WordTokenizer().fit(Revisable().corpus())
    reviser = Scripted(tokenizer, wrong="elk")
    data = module(scope={"word": "ant"}, learn=["pairs", "anchors"], reviser=reviser, scored=False)
    batch = collected(data)
    anchors = batch[~batch.mask.any(1)]
    assert sorted(texts(data, anchors)) == sorted(f"say {word} elk" for word in ("bee", "cow", "dog") * 2)
    assert torch.equal(anchors.expert_mask, anchors.valid) and (anchors.rank == -1).all()
    assert sorted(texts(data, batch[batch.mask.any(1)])) == ["say ant ant"] * 2 + ["say ant fox"] * 2
    assert data.counters["env_steps"] == (8 + 2 + 6) * 2  # attempts, revisions and anchors, of two tokens each
    assert data.counters["feedback_calls"] == 2


def test_a_row_that_is_too_long_is_left_out_and_said_so():
    """Prompt, reply and critique are 14 tokens with the stop; a context of 13 has room for prompt and reply only."""
    data = module(learn=["attempts", "critiques"], context=13)
    with pytest.warns(UserWarning, match="left_out"):
        batch = collected(data)
    assert batch.extra["attempt"].all() and len(batch) == 8
    assert data.statistics["left_out"] == 0.5  # of 8 attempts and 8 critiques
    assert len(collected(module(learn=["attempts", "critiques"], context=14))) == 16


def test_a_revision_prompt_may_be_as_long_as_the_context():
    """A policy with a shorter context is refused at the start, and not when the first long critique comes."""
    assert module(context=40).longest_row == 40
    assert module(context=None).longest_row == 2 + 3


def test_a_reviser_of_other_ids_is_refused_by_name():
    reviser = Scripted(WordTokenizer().fit(["other words"]))
    reviser.tokenizer_digest = reviser.tokenizer.digest
    with pytest.raises(ValueError, match="reviser: the model was trained with a different tokenizer"):
        module(reviser=reviser)


def test_costs_are_counted():
    data = module()
    batch = collected(data)
    assert data.counters["env_steps"] == int(batch.valid.sum()) == 32
    assert data.counters["critiques"] == 8 and data.counters["feedback_calls"] == 8 + 8 + 8
    data = module(scored=False)
    batch = collected(data)
    assert batch.rewards is None and data.counters["feedback_calls"] == 8


def test_what_has_no_room_is_left_unrevised_and_said_so():
    data = module(context=14)  # prompt, reply, critique and revision: 2 + 2 + 1 + 2 + 6 + 2 + 3 of max_new
    with pytest.warns(UserWarning, match="not revised"):
        batch = collected(data)
    assert not batch.extra["revision"].any() and data.statistics["unrevised"] == 1


def test_a_frozen_reviser_revises_in_the_place_of_the_policy():
    tokenizer = WordTokenizer().fit(Revisable().corpus())
    reviser = Scripted(tokenizer, wrong="elk")
    data = module(reviser=reviser)
    actor = Scripted(data.tokenizer)
    collected(data, actor)
    assert len(reviser.read) == 8 and all(text.endswith("revision :") for text in reviser.read)
    assert len(actor.read) == 4 and not any(CRITIQUE in text for text in actor.read)


def test_who_else_replies_works_where_the_policy_does():
    class Noted(Exception):
        pass

    class Elsewhere:
        def reply(self, ids, lengths, *rest, **how):
            raise Noted(ids.device.type, lengths.device.type)

    far = SimpleNamespace(root_device=torch.device("meta"))
    trainer = SimpleNamespace(world_size=1, global_rank=0, accumulate_grad_batches=1, testing=False, strategy=far)
    revised, authored = module(reviser=Elsewhere()), module(author=Elsewhere(), learn=["critiques"])
    revised.trainer = authored.trainer = trainer
    for play in (revised.collect, lambda actor, rng: revised.evaluate(actor, rng, True), authored.collect):
        with pytest.raises(Noted) as noted:
            play(Scripted(revised.tokenizer), np.random.default_rng(0))
        assert noted.value.args == ("meta", "meta")


def test_an_author_writes_the_attempts_behind_the_prompt_alone():
    """The policy's prompts end with a code, which the author's prompts do not have."""
    tokenizer = WordTokenizer().fit(Revisable().corpus())
    author = Scripted(tokenizer, wrong="elk")
    data = module(learn=["conditioned"], author=author, prompt_suffix=" critique : nothing is wrong . answer :")
    actor = Scripted(data.tokenizer)
    batch = collected(data, actor)
    assert {text.split()[0] for text in author.read} == {"say"} and max(map(len, map(str.split, author.read))) == 2
    assert {text.split()[0] for text in texts(data, batch, batch.expert_mask)} == {"elk"}
    assert all(text.endswith("revision :") for text in actor.read)


def test_attempts_of_an_author_are_not_the_policys():
    with pytest.raises(ValueError, match="attempts"):
        module(author=Scripted(WordTokenizer().fit(Revisable().corpus())))


def test_an_evaluation_says_what_the_critique_was_worth():
    data = module(evaluation_replies=2)
    for deterministic, episodes in ((True, 2), (False, 4)):
        batch = data.evaluate(Scripted(data.tokenizer, wrong="ant"), np.random.default_rng(0), deterministic)
        assert len(batch) == episodes
        means = {name: float(batch.metrics[name].mean()) for name in ("revised", "revised_shuffled", "revised_placebo")}
        assert means["revised"] == pytest.approx(1.25)
        assert means["revised_placebo"] == pytest.approx(0.25)
        assert means["revised_shuffled"] < 1


def test_drift_is_how_far_replies_out_of_scope_went_from_the_frozen_start():
    """0 while the policy is the start; then log π − log π₀ of the sampled tokens, and NaN in scope."""
    torch.manual_seed(0)
    plain = module()
    word, vocabulary = plain.cases["val"][0].case.facts["word"], plain.vocabulary
    start, policy = (GRUPolicy(vocabulary=vocabulary, width=16) for _ in range(2))
    data = module(scope={"word": word}, reviser=PolicyTextExpert(start), evaluation_replies=8)
    assert "drift" not in data.evaluate(ReinforcePolicy(policy=policy), np.random.default_rng(0), True).metrics
    for current in (copy.deepcopy(start), policy):
        batch = data.evaluate(ReinforcePolicy(policy=current), np.random.default_rng(0), False)
        drift = batch.metrics["drift"]
        inside = torch.tensor([text.startswith(f"say {word}") for text in texts(data, batch)])
        assert torch.equal(drift.isnan(), inside) and inside.any() and not inside.all()
        with torch.no_grad():
            start_log_probs, log_probs = (
                x(batch.obs, batch.valid).log_prob(batch.actions[batch.valid]) for x in (start, current)
            )
        rows = batch.valid.nonzero()[:, 0]
        expected = torch.zeros(len(batch)).index_add(0, rows, log_probs - start_log_probs)
        torch.testing.assert_close(drift[~inside], expected[~inside], rtol=0, atol=1e-4)
    assert drift[~inside].abs().max() > 0.01


def test_the_learner_of_a_round_is_the_policy_that_acted():
    """Stored log-probabilities of attempts equal the training forward's; those of their views differ."""
    torch.manual_seed(0)
    data = module()
    policy = GRUPolicy(vocabulary=data.vocabulary, width=16)
    with torch.no_grad():
        policy.head.bias[:3] = torch.tensor([-20.0, 2.0, -20.0])  # no special token but the stop
    actor = ReinforcePolicy(policy=policy)
    batch = collected(data, actor)
    now = actor.evaluate(batch)
    torch.testing.assert_close(now.log_probs[batch.mask], batch.log_probs[batch.mask], rtol=0, atol=1e-4)
    revised = batch.extra["revision"][:, None] & batch.valid
    behind = actor.evaluate(batch.view).log_probs
    is_revision = batch.extra["revision"]
    order = batch.view.valid[is_revision]
    torch.testing.assert_close(behind[is_revision][order], batch.log_probs[revised], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rounds": 0}, "rounds"),
        ({"revisions": 0}, "revisions"),
        ({"learn": []}, "learn"),
        ({"scored": False, "keep": "best"}, "keep"),
        ({"learn": ["anchors"], "scope": {"word": "ant"}}, "reviser"),
        ({"learn": ["anchors"], "reviser": object()}, "scope"),
        ({"unfinished": "drop"}, "unfinished"),
        ({"unfinished": "penalty"}, "unfinished"),
        ({"unfinished": "replace"}, "unfinished"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        module(**knobs)


@pytest.mark.parametrize("name", ["window", "expected", "injection", "labeller", "label_buffer"])
def test_it_has_no_knob_of_other_ways_to_learn_from_text(name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        module(**{name: None})


def test_a_task_without_revisions_is_refused(echo):
    with pytest.raises(ValueError, match="task"):
        RevisionDataModule(echo, tokenizer=WordTokenizer())
