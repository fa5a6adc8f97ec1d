"""FileCritic: criticised replies in a file become off-policy attempts, and the log says how many are left out."""

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from data_modules.feedback import FileCritic, file_critic  # noqa: E402
from data_modules.text import Wording  # noqa: E402
from lightning_nlf.objectives import ReinforcePolicy  # noqa: E402
from tests.data_modules.text import own_prompts  # noqa: E402
from tests.data_modules.text.own_prompts import QUESTIONS, Payer, Speaker  # noqa: E402

YOU, ME, WE, _ = QUESTIONS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("file")


@pytest.fixture(scope="module")
def tokenizer(place):
    return own_prompts.tokenizer(place)


@pytest.fixture
def speaker(tokenizer):
    return Speaker(tokenizer, Wording())


@pytest.fixture
def people(tmp_path, tokenizer):
    """Three criticised responses to two prompts, one of them right; an uncriticised response; two further prompts."""
    chat = [{"role": "system", "content": "so"}, {"role": "user", "content": ME}]
    sampled = {"tokens": [[*tokenizer.encode("no"), tokenizer.eos]], "tokenizer": tokenizer.digest, "finished": [True]}
    return own_prompts.lines(
        tmp_path / "people.jsonl",
        [
            {"id": "1", "prompt": YOU, "responses": ["want", "2", "3"], "critique": ["say more", None, "of what ?"]},
            {"id": "2", "prompt": chat, "responses": ["no"], "critique": ["Nothing is wrong."], "meta": sampled},
            {"id": "3", "prompt": WE, "responses": ["and so on"], "score": 1.0, "expected": "the answer"},
        ],
    )


def module(place, critic, **knobs):
    return own_prompts.module(place, **({"critic": critic, "prompts": 3, "max_new": 30} | knobs))


def collected(data, actor, seed=0):
    return data.collect(actor, np.random.default_rng(seed))


def replies(data, batch):
    return [data.tokenizer.decode(x[valid].tolist()) for x, valid in zip(batch.actions, batch.valid, strict=True)]


def test_the_attempts_are_the_replies_that_people_criticised(place, people, speaker):
    """Three attempts, each in its own group. The right one is not revised, so the policy writes only two revisions."""
    data = module(place, FileCritic(people))
    batch = collected(data, speaker)
    attempts, revisions = batch[batch.extra["attempt"]], batch[batch.extra["revision"]]
    assert sorted(replies(data, attempts)) == ["3", "no", "want"] and replies(data, revisions) == ["2", "2"]
    assert sorted(batch.group.bincount().tolist()) == [1, 2, 2]
    assert [speaker.kind(text) for text in speaker.read] == ["revision"] * 2
    quoted = {text.split("That is not right yet. ")[1].split("\n")[0] for text in speaker.read}
    assert quoted == {"say more", "of what ?"}
    assert data.counters["critiques"] == data.counters["feedback_calls"] == 3
    assert data.counters["env_steps"] == 2 * (len(data.tokenizer.encode("2")) + 1)  # the attempts are not sampled
    assert data.statistics["criticised"] == pytest.approx(2 / 3)


def test_what_is_left_out_is_said(place, people, monkeypatch):
    messages = []
    monkeypatch.setattr(file_critic, "rank_zero_info", messages.append)
    module(place, FileCritic(people))
    (message,) = [text for text in messages if text.startswith("critic: ")]
    assert (
        "critic: 3 of 5 responses in" in message and "2 of 4 prompts have no such response and are left out" in message
    )


def test_no_criticised_reply_at_all_is_refused(place, tmp_path):
    path = own_prompts.lines(tmp_path / "f.jsonl", [{"prompt": "else", "responses": ["r"], "critique": ["c"]}])
    with pytest.raises(ValueError, match="critic: 0 of 1 responses .* 4 of 4 prompts have no such response"):
        module(place, FileCritic(path))


def test_no_reply_comes_again_before_all_had_their_turn(place, people, speaker):
    data = module(place, FileCritic(people), learn=["attempts"])
    for seed in range(3):
        assert sorted(replies(data, collected(data, speaker, seed))) == ["3", "no", "want"]


def test_the_log_probabilities_are_the_policys_at_the_time(place, people, tokenizer):
    """The importance ratio is therefore 1 in the first step, without an off-policy correction."""
    data = module(place, FileCritic(people), learn=["attempts"])
    agent = ReinforcePolicy(policy=own_prompts.policy(tokenizer))
    batch = collected(data, agent)
    now = agent.evaluate(batch).log_probs
    torch.testing.assert_close(batch.log_probs[batch.mask], now[batch.mask], rtol=0, atol=1e-5)


def test_the_tokens_are_those_that_were_sampled(place, tmp_path, tokenizer):
    """`meta` holds single letters, which encoding the text never gives; with another tokenizer `meta` is ignored."""
    letters = [tokenizer.token(letter) for letter in "want"]
    assert tokenizer.encode("want") != letters
    for digest, expected in ((tokenizer.digest, letters), ("other", tokenizer.encode("want"))):
        meta = {"tokens": [[*letters, tokenizer.eos]], "tokenizer": digest}
        record = {"prompt": YOU, "responses": ["want"], "critique": ["c"], "meta": meta}
        data = module(place, FileCritic(own_prompts.lines(tmp_path / "f.jsonl", [record])), prompts=1)
        assert data.file_attempts[0].tokens == [*expected, tokenizer.eos]


def test_a_reply_that_was_cut_has_no_stop_token(place, tmp_path, tokenizer):
    record = {"prompt": YOU, "responses": ["want"], "critique": ["c"], "meta": {"finished": [False]}}
    data = module(place, FileCritic(own_prompts.lines(tmp_path / "f.jsonl", [record])), prompts=1)
    assert data.file_attempts[0].tokens == tokenizer.encode("want") and not data.file_attempts[0].finished


def test_lines_belong_to_a_prompt_by_id_too(tmp_path, tokenizer, speaker):
    """A prediction with a suffix writes prompts that differ from the task's."""
    own_prompts.lines(tmp_path / "own.jsonl", [{"id": f"q{i}", "prompt": text} for i, text in enumerate(QUESTIONS)])
    record = {"id": "q2", "prompt": f"{WE} and so on", "responses": ["want"], "critique": ["c"]}
    critic = FileCritic(own_prompts.lines(tmp_path / "f.jsonl", [record]))
    task = own_prompts.PromptFile(str(tmp_path / "own.jsonl"), val_share=0, test_share=0)
    (reply,) = critic.replies(task.cases("train"), tokenizer)
    assert reply.case.id == "q2"


def test_a_reply_that_two_people_criticised_has_both_critiques(place, tmp_path, tokenizer):
    lines = [{"prompt": YOU, "responses": ["want"], "critique": [text], "source": text} for text in ("c", "d")]
    critic = FileCritic(own_prompts.lines(tmp_path / "f.jsonl", lines))
    data = module(place, critic, prompts=2)
    assert len(data.file_attempts) == 2
    acting = data.teacher.acting(None, torch.device("cpu"))
    case = data.file_attempts[0].case
    assert critic.critiques([case] * 2, ["want"] * 2, [4, 7], acting) == ["c", "d"]


def test_the_expected_response_of_a_file_is_the_revision(place, people, speaker):
    """The prompt with an expected response has a revision, which is certain; the other one has none."""
    data = own_prompts.module(place, critic=own_prompts.Always("c"), reviser=FileCritic(people), prompts=4, replies=1)
    with pytest.warns(UserWarning, match="not revised"):
        batch = collected(data, speaker)
    revisions = batch[batch.extra["revision"]]
    assert replies(data, revisions) == ["the answer"] and revisions.log_probs[revisions.valid].isinf().all()
    assert data.statistics["unrevised"] == pytest.approx(3 / 4)
    assert data.counters["critiques"] == 4 and data.counters["feedback_calls"] == 5


def test_an_evaluation_asks_nothing_of_a_file(place, people, speaker):
    """The file has no critiques of new replies, so nothing is revised in an evaluation."""
    data = module(place, FileCritic(people), reward=Payer())
    metrics = data.evaluate(speaker, np.random.default_rng(0), True).metrics
    assert not [name for name in metrics if name.startswith("revised")]


@pytest.mark.parametrize(("knob", "value"), [("rounds", 2), ("keep", "approved"), ("author", Speaker(None, Wording()))])
def test_what_would_criticise_other_replies_is_refused(place, people, knob, value):
    with pytest.raises(ValueError, match=f"{knob}: the critic has critiques of the replies in its file only"):
        module(place, FileCritic(people), learn=["revisions"], **{knob: value})


def test_a_line_that_is_wrong_is_named(place, tmp_path, tokenizer):
    path = own_prompts.lines(tmp_path / "f.jsonl", [{"prompt": YOU, "responses": ["a"], "critique": [1]}])
    with pytest.raises(ValueError, match="f.jsonl:1: critique"):
        module(place, FileCritic(path))
    meta = {"tokens": "want", "tokenizer": tokenizer.digest}
    damaged = {"prompt": YOU, "responses": ["want"], "critique": ["c"], "meta": meta}
    with pytest.raises(ValueError, match="g.jsonl:1: meta: tokens must be a list of ids"):
        module(place, FileCritic(own_prompts.lines(tmp_path / "g.jsonl", [damaged])))
