"""Models as critics and revisers: their prompts are turns of a chat; their costs; and settings that are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from data_modules.text import (  # noqa: E402
    Chat,
    FolderTokenizer,
    ModelCritic,
    PromptFile,
    RevisionDataModule,
    SourcedAnswers,
    Wording,
    WordTokenizer,
)
from data_modules.text.writer import Writer  # noqa: E402
from lightning_nlf.experts import PolicyTextExpert  # noqa: E402
from lightning_nlf.objectives import ReinforcePolicy  # noqa: E402
from tests.data_modules.text import own_prompts  # noqa: E402
from tests.data_modules.text.chats import SHAPES, folder  # noqa: E402
from tests.data_modules.text.own_prompts import CRITIQUE, QUESTIONS, Payer, Speaker  # noqa: E402

WORDING = Wording()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("critics")


@pytest.fixture(scope="module")
def tokenizer(place):
    return own_prompts.tokenizer(place)


@pytest.fixture
def speaker(tokenizer):
    return Speaker(tokenizer, WORDING)


def module(place, **knobs):
    return own_prompts.module(place, **({"critic": ModelCritic(), "max_new": 30} | knobs))


def collected(data, actor, seed=0):
    return data.collect(actor, np.random.default_rng(seed))


def texts(data, batch):
    """The text of each row up to the last valid step."""
    whole = torch.cat([batch.obs[:, :1], batch.actions], 1)
    ends = [int(row.nonzero()[-1]) + 2 if row.any() else 0 for row in batch.valid]
    return [data.tokenizer.decode(ids[:end].tolist()) for ids, end in zip(whole, ends, strict=True)]


# ---- prompts


def test_a_revision_is_asked_for_as_three_turns_of_the_chat_template(place, tokenizer, speaker):
    """The ids equal transformers' `apply_chat_template` of [user, assistant, user]."""
    backend = transformers.AutoTokenizer.from_pretrained(tokenizer.path)
    data = module(place)
    collected(data, speaker)
    questions = [text for text in speaker.read if speaker.kind(text) == "revision"]
    assert len(questions) == 4
    for text in questions:
        question = next(question for question in QUESTIONS if question in text)
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "want"},
            {"role": "user", "content": WORDING.revise.format(critique=CRITIQUE)},
        ]
        ids = backend.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        prompt = data.teacher.sentences.revision_prompt(case(data, question), "want", CRITIQUE)
        assert data.teacher.encoded(prompt) == ids and tokenizer.decode(ids) == text


def case(data, question):
    return next(prompt.case for prompt in data.cases["train"] if prompt.case.text == question)


def test_the_system_message_stands_before_every_question(place, speaker):
    collected(module(place, chat=Chat("be short")), speaker)
    assert len(speaker.read) == 2 + 4 + 4  # two prompts; four replies are criticised and revised
    assert all(text.startswith("<|im_start|>system\nbe short<|im_end|>") for text in speaker.read)


def test_the_wording_of_the_yaml_replaces_that_of_the_task(place, tokenizer):
    wording = Wording(revise="Wrong here: {critique} again", criticise="Is it so? {praise}", praise="fine")
    speaker = Speaker(tokenizer, wording)
    collected(module(place, wording=wording), speaker)
    questions = [text for text in speaker.read if speaker.kind(text) == "revision"]
    assert len(questions) == 4 and all(f"Wrong here: {CRITIQUE} again<|im_end|>" in text for text in questions)


def test_a_task_of_plain_words_keeps_them_without_a_template_and_has_turns_with_one(tokenizer):
    """Built-in tasks ask for a revision in one line of text, and with a chat template in turns of a chat."""
    for chat in (False, None):
        data = RevisionDataModule(SourcedAnswers(), tokenizer=tokenizer, max_new=4, context=4096, chat=chat)
        data.setup("fit")
        first = data.cases["train"][0].case
        prompt = data.teacher.sentences.revision_prompt(first, "y", "c")
        if chat is False:
            assert prompt == f"{first.prompt} answer : y critique : c revision :"
        else:
            assert [turn.role for turn in prompt] == ["user", "assistant", "user"] and prompt[0].content == first.prompt


def test_hindsight_is_a_chat_of_two_announced_replies(place, tokenizer, speaker):
    """[user x (good), assistant z, user (bad), assistant y], or the reverse, by the template."""
    backend = transformers.AutoTokenizer.from_pretrained(tokenizer.path)
    data = module(place, learn=["hindsight"])
    rows = texts(data, collected(data, speaker))
    expected = set()
    for question in QUESTIONS:
        for order in ([(WORDING.good, "2"), (WORDING.bad, "want")], [(WORDING.bad, "want"), (WORDING.good, "2")]):
            turns = [{"role": "user", "content": question + order[0][0]}, {"role": "assistant", "content": order[0][1]}]
            turns += [{"role": "user", "content": order[1][0].strip()}, {"role": "assistant", "content": order[1][1]}]
            expected.add(backend.apply_chat_template(turns, tokenize=False))
    assert len(rows) == 4 and all(f"{row}<|im_end|>\n" in expected for row in rows)
    assert sum(row.endswith("2") for row in rows) == 2


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("messages | length > 1", "chat: a revision needs several turns"),
        ("'bad answer' in messages[-1].content", "learn: hindsight has two replies in a row"),
    ],
)
def test_a_template_that_does_not_take_the_turns_is_refused(place, tmp_path, condition, message):
    refuse = "{% if " + condition + " %}{{ raise_exception('so many') }}{% endif %}"
    shape = replace(SHAPES["chatml"], template=refuse + SHAPES["chatml"].template)
    knobs = {"tokenizer": FolderTokenizer(folder(tmp_path, shape, "bytes")), "learn": ["hindsight"]}
    with pytest.raises(ValueError, match=f"{message}: .*so many"):
        own_prompts.module(place, critic=own_prompts.Always("c"), **knobs)


# ---- the policy as critic and reviser


def test_the_policy_criticises_its_own_replies_in_one_batch(place, speaker):
    data = module(place)
    batch = collected(data, speaker)
    kinds = [speaker.kind(text) for text in speaker.read]
    assert kinds == ["reply"] * 2 + ["critique"] * 4 + ["revision"] * 4
    assert batch.extra["attempt"].sum() == batch.extra["revision"].sum() == 4
    assert data.statistics["criticised"] == 1 and data.statistics["unheard"] == 0
    assert {text.split("assistant\n")[1] for text in texts(data, batch[batch.extra["revision"]])} == {"2"}


def test_critiques_and_revisions_of_the_last_collection_can_be_read(place, speaker, tmp_path):
    data = module(place)
    collected(data, speaker)
    rows = data.criticised
    assert rows and all(list(row) == ["prompt", "reply", "critique", "revision"] for row in rows)
    assert {row["prompt"] for row in rows} <= set(QUESTIONS) and {row["critique"] for row in rows} == {CRITIQUE}
    assert all(row["revision"] for row in rows)
    page = {path.name: path.read_text() for path in data.exhibits(tmp_path)}
    assert page.keys() >= {"critiques.md", "critiques.html"} and CRITIQUE in page["critiques.html"]


def test_costs_are_exact(place, speaker, tokenizer):
    """Two prompts with two replies each: four critiques. All tokens that the policy samples are counted."""
    data = module(place)
    collected(data, speaker)
    tokens = {kind: len(tokenizer.encode(text)) + 1 for kind, text in speaker.says.items()}
    assert data.counters["critiques"] == data.counters["feedback_calls"] == 4  # no scores are counted
    assert data.counters["critic_tokens"] == 4 * tokens["critique"]
    assert data.counters["env_steps"] == 4 * sum(tokens.values())
    collected(data, speaker)
    assert data.counters["critiques"] == 8 and data.counters["critic_tokens"] == 8 * tokens["critique"]


def test_nothing_is_revised_where_nobody_learns_from_it_or_says_what_it_gains(place, speaker):
    """Self-distillation from critiques reads the attempts after them, so the view exists without revisions."""
    for reward, revisions in ((None, 0), (Payer(), 4)):
        speaker.read.clear()
        data = module(place, learn=["attempts"], reward=reward)
        batch = collected(data, speaker)
        assert [speaker.kind(text) for text in speaker.read].count("revision") == revisions
        assert batch.view.valid.any(1).all() and data.statistics["unrevised"] == 0


@pytest.mark.parametrize("praise", ["Nothing is wrong.", "nothing is wrong", ' "Nothing is wrong!"\n'])
def test_praise_is_no_critique(place, tokenizer, praise):
    data = module(place, learn=["attempts", "critiques"])
    batch = collected(data, Speaker(tokenizer, WORDING, critique=praise))
    assert data.statistics["criticised"] == 0 and not batch.view.valid.any()
    praises = [text for text in texts(data, batch) if text.split("assistant\n")[-1] == WORDING.praise]
    assert len(praises) == 4  # and it is what a right reply is given as its critique


def test_a_critic_that_says_nothing_has_not_approved(place, tokenizer):
    silent = Speaker(tokenizer, WORDING, critique="")
    with pytest.warns(UserWarning, match="the critic gave no answer"):
        data = module(place, learn=["attempts", "critiques", "conditioned"])
        batch = collected(data, silent)
    assert data.statistics["unheard"] == 1 and batch.extra["attempt"].all() and len(batch) == 4
    approved = module(place, learn=["revisions"], keep="approved")
    assert not collected(approved, silent).valid.any()


def test_revisions_are_approved_by_the_critic(place, tokenizer):
    """The critic gets the four attempts, and then the four revisions, which are right."""

    class Fair(Speaker):
        def reply(self, ids, lengths, *rest, **how):
            right = "assistant\n2<|im_end|>" in self.of.decode(ids[0, : lengths[0]].tolist())
            self.says["critique"] = WORDING.praise if right else CRITIQUE
            return super().reply(ids, lengths, *rest, **how)

    data = module(place, learn=["revisions"], keep="approved")
    batch = collected(data, Fair(tokenizer, WORDING))
    assert batch.valid.any(1).sum() == 4 and data.counters["critiques"] == 8


def test_what_is_drawn_depends_on_the_seed_and_greedy_on_nothing(place, tokenizer):
    actor = ReinforcePolicy(policy=own_prompts.policy(tokenizer))
    data = module(place)
    writer = Writer(actor, data.teacher.format, data.stops)
    greedy = [writer.write(QUESTIONS, 6) for _ in range(2)]
    assert greedy[0] == greedy[1]
    samples = [writer.write(QUESTIONS, 6, seeds) for seeds in ([1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8])]
    assert samples[0] == samples[1] != samples[2]
    assert writer.write(QUESTIONS, 6, [1, 2, 3, 4], temperature=1e-4) == greedy[0]  # near 0 sampling is greedy
    assert writer.write(QUESTIONS[::-1], 6, [4, 3, 2, 1]) == samples[0][::-1]  # nothing depends on the neighbours


def test_a_prompt_without_room_is_not_asked(place, tokenizer, speaker):
    data = module(place)
    sizes = [len(data.teacher.format.ids(question)) for question in QUESTIONS]
    writer = Writer(speaker, data.teacher.format, data.stops, context=max(sizes) + 4)
    answers = writer.write([*QUESTIONS, "what is it that you want ? " * 3], 4)
    assert [text is None for text in answers] == [False] * 4 + [True] and len(speaker.read) == 4


# ---- a model with another tokenizer


def test_a_frozen_start_reads_the_policys_ids(place, tokenizer, speaker):
    start = Speaker(tokenizer, WORDING, critique="no , 3")
    data = module(place, critic=ModelCritic(start, max_new=9))
    collected(data, speaker)
    assert [start.kind(text) for text in start.read] == ["critique"] * 4
    assert "critique" not in map(speaker.kind, speaker.read)
    assert all("no , 3" in text for text in speaker.read[2:])


def test_a_model_of_another_tokenizer_is_asked_and_answers_in_text(place, tokenizer, speaker):
    """The critic uses Phi's template; the policy's revision prompt has its critique in the policy's own tokens."""
    phi = own_prompts.tokenizer(place, "phi")
    critic = Speaker(phi, WORDING)
    critic.kind = lambda text: "critique"
    data = module(place, critic=ModelCritic(critic, phi, max_new=9))
    collected(data, speaker)
    assert len(critic.read) == 4 and all(text.startswith("<|user|>") for text in critic.read)
    assert all("<|assistant|>want<|end|>" in text for text in critic.read)
    assert all(CRITIQUE in text and text.startswith("<|im_start|>") for text in speaker.read[2:])


def test_a_model_of_another_tokenizer_revises_in_text(place, tokenizer, speaker):
    """Log-probabilities are +∞, as of a certain expert; its four texts and the four critiques are feedback calls."""
    phi = own_prompts.tokenizer(place, "phi")
    reviser = Speaker(phi, WORDING, revision="the answer is 3")
    reviser.kind = lambda text: "revision"
    data = module(place, critic=ModelCritic(), reviser=ModelCritic(reviser, phi, max_new=9))
    batch = collected(data, speaker)
    revisions = batch[batch.extra["revision"]]
    assert all(text.endswith("assistant\nthe answer is 3") for text in texts(data, revisions))
    assert revisions.log_probs[revisions.valid].eq(float("inf")).all()
    assert data.counters["feedback_calls"] == 8
    spent = [len(tokenizer.encode(speaker.says[kind])) + 1 for kind in ("reply", "critique")]
    length = len(phi.encode("the answer is 3")) + 1
    assert data.counters["reviser_tokens"] == 4 * length
    assert data.counters["env_steps"] == 4 * (sum(spent) + length)


def test_a_reviser_that_says_nothing_leaves_the_reply_unrevised(place, speaker):
    class Quiet:
        counters = {}

        def revisions(self, cases, replies, critiques, seeds, acting):
            return [None] * len(cases)

    data = module(place, reviser=Quiet())
    with pytest.warns(UserWarning, match="not revised"):
        batch = collected(data, speaker)
    assert not batch.extra["revision"].any() and data.statistics["unrevised"] == 1


# ---- scores


def test_where_nobody_pays_there_are_no_rewards_and_no_figures_of_revisions(place, speaker):
    data = module(place)
    batch = collected(data, speaker)
    assert batch.rewards is None and batch.score.isnan().all() and "gain" not in data.statistics
    assert not data.scored
    metrics = data.evaluate(speaker, np.random.default_rng(0), True).metrics
    assert not [name for name in metrics if name.startswith("revised")]


def test_a_reward_pays_for_attempts_and_revisions(place, speaker, tokenizer):
    """The reward is the sum of a reply's ids, stop included, modulo 7, as `Payer` gives it."""
    data = module(place, reward=Payer())
    batch = collected(data, speaker)
    worth = {
        kind: sum([*tokenizer.encode(speaker.says[kind]), tokenizer.eos]) % 7 / 7 for kind in ("reply", "revision")
    }
    for kind, name in (("attempt", "reply"), ("revision", "revision")):
        rows = batch[batch.extra[kind]]
        torch.testing.assert_close(rows.score, torch.full((4,), worth[name]))
        torch.testing.assert_close(torch.where(rows.valid, rows.rewards, 0).sum(1), rows.score)
    assert data.statistics["gain"] == pytest.approx(worth["revision"] - worth["reply"], abs=1e-6)
    assert data.statistics["return"] == pytest.approx(worth["reply"], abs=1e-6)
    metrics = data.evaluate(speaker, np.random.default_rng(0), True).metrics
    assert metrics["revised"].tolist() == pytest.approx([worth["revision"]])


def test_the_critic_is_asked_once_an_evaluation(place, speaker):
    data = module(place, reward=Payer())
    data.evaluate(speaker, np.random.default_rng(0), True)
    assert [speaker.kind(text) for text in speaker.read].count("critique") == 1


# ---- errors


def plain(place, **knobs):
    settings = {"critic": ModelCritic(), "max_new": 4}
    data = RevisionDataModule(own_prompts.prompts(place), tokenizer=WordTokenizer(), **(settings | knobs))
    data.setup("fit")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"critic": None}, "critic: PromptFile has no critiques of replies"),
        ({"keep": "best"}, "keep: best needs scores, and PromptFile has no rule that scores replies; give a reward"),
        ({"keep": "better"}, "keep: better needs scores, and PromptFile has no rule"),
    ],
)
def test_what_must_be_there_is_said_before_training(place, knobs, message):
    with pytest.raises(ValueError, match=message):
        module(place, **knobs)


def test_turns_of_a_chat_need_a_chat_template(place):
    with pytest.raises(ValueError, match="task: PromptFile has revision prompts in turns of a chat"):
        plain(place)
    with pytest.raises(ValueError, match="wording: its texts are turns of a chat"):
        plain(place, wording=Wording())


def test_a_critic_of_other_ids_is_refused(place, tokenizer):
    phi = own_prompts.tokenizer(place, "phi")
    start = PolicyTextExpert(own_prompts.policy(phi))
    start.policy.tokenizer_digest = phi.digest
    with pytest.raises(ValueError, match="critic: the model was trained with a different tokenizer"):
        module(place, critic=ModelCritic(start))
    module(place, critic=ModelCritic(start, phi))
    with pytest.raises(ValueError, match="reviser: the model was trained with a different tokenizer"):
        module(place, reviser=ModelCritic(start))


def test_a_critic_that_cannot_be_asked_is_refused(place):
    """A word tokenizer without a template cannot encode turns of a chat."""
    words = WordTokenizer().fit(["a"])
    with pytest.raises(
        ValueError,
        match="critic: its tokenizer cannot encode the prompt for a critique: the prompt is a list of messages",
    ):
        module(place, critic=ModelCritic(Speaker(words, WORDING), words))


@pytest.mark.parametrize(
    ("knobs", "name"), [({"max_new": 0}, "max_new"), ({"top_p": 0}, "top_p"), ({"temperature": -1}, "temperature")]
)
def test_knobs_of_a_model_out_of_range(knobs, name):
    with pytest.raises(ValueError, match=name):
        ModelCritic(**knobs)


def test_a_tokenizer_without_a_model_is_refused():
    with pytest.raises(ValueError, match="tokenizer: without a model the data's tokenizer is used"):
        ModelCritic(tokenizer=WordTokenizer())


def test_a_file_of_prompts_is_no_critic(place):
    task = own_prompts.prompts(place)
    assert isinstance(task, PromptFile)
    with pytest.raises(ValueError, match="critic: PromptFile has no critiques of replies"):
        task.critique(task.cases("train")[0], "y", 0)
