"""Served model as critic and reviser: questions, costs, and errors that stop the run."""

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")
pytest.importorskip("openai")

from data_modules.feedback.providers import CritiqueQuestion, EndpointCritic, JudgeReward, ScoreQuestion  # noqa: E402
from data_modules.text import RevisionDataModule, Wording  # noqa: E402
from tests.data_modules.text import own_prompts  # noqa: E402
from tests.data_modules.text.own_prompts import QUESTIONS, Speaker  # noqa: E402

SHORT, REVISED = "{prompt} | {response}", "{prompt} | {response} | {critique}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("endpoint")


@pytest.fixture
def speaker(place):
    return Speaker(own_prompts.tokenizer(place), Wording())


def teacher(endpoint, **knobs):
    return EndpointCritic(endpoint, **({"question": CritiqueQuestion(SHORT), "revision": REVISED} | knobs))


def module(place, **knobs):
    return own_prompts.module(place, **({"max_new": 30} | knobs))


def collected(data, actor, seed=0):
    return data.collect(actor, np.random.default_rng(seed))


def test_a_served_critic_is_asked_of_each_reply_once_and_counted(server, endpoint, place, speaker, prompt_of):
    """Four replies to two prompts, equal in pairs: two questions are sent, and the cache answers the others."""
    server.answer = lambda body: server.chat("it is 2", tokens=(10, 3))
    data = module(place, critic=teacher(endpoint()))
    batch = collected(data, speaker)
    questions = sorted({f"{text} | want" for text in QUESTIONS} & set(map(prompt_of, server.requests)))
    assert sorted(map(prompt_of, server.requests)) == questions and len(questions) == 2
    assert batch.extra["revision"].sum() == 4
    counters = {"critic_calls": 2, "critic_cached": 2, "critic_prompt_tokens": 20, "critic_completion_tokens": 6}
    assert {name: data.counters[name] for name in counters} == counters
    assert data.counters["critiques"] == data.counters["feedback_calls"] == 4
    assert all("it is 2" in text for text in speaker.read if speaker.kind(text) == "revision")


def test_nothing_is_no_critique(server, endpoint, place, speaker):
    server.answer = lambda body: server.chat("NOTHING.")
    data = module(place, critic=teacher(endpoint()))
    batch = collected(data, speaker)
    assert data.statistics["criticised"] == 0 and batch.extra["attempt"].all()


def test_a_served_reviser_answers_in_text(server, endpoint, place, speaker, prompt_of):
    """It reads prompt, reply and critique. Its four texts count as feedback calls, not as sampled tokens."""
    server.answer = lambda body: server.chat("the answer is 3" if prompt_of(body).count("|") == 2 else "it is 2")
    data = module(place, critic=teacher(endpoint()), reviser=teacher(endpoint(), max_tokens=9))
    batch = collected(data, speaker)
    revisions = batch[batch.extra["revision"]]
    ids = [*data.tokenizer.encode("the answer is 3"), data.tokenizer.eos]
    assert all(row[valid].tolist() == ids for row, valid in zip(revisions.actions, revisions.valid, strict=True))
    assert revisions.log_probs[revisions.valid].eq(float("inf")).all()
    bodies = [body for body in server.requests if prompt_of(body).endswith("| want | it is 2")]
    assert len(bodies) == 2 and {body["max_tokens"] for body in bodies} == {9}
    assert data.counters["feedback_calls"] == 4 + 4 and data.counters["reviser_calls"] == 2
    assert data.counters["env_steps"] == 4 * (len(data.tokenizer.encode("want")) + 1)


def test_several_revisions_are_different_draws(server, endpoint, place, speaker, prompt_of):
    """At a positive temperature each of two revisions per reply has its own seed; at 0 they are one question."""
    server.answer = lambda body: server.chat("3" if prompt_of(body).count("|") == 2 else "it is 2")
    seeds = {}
    for temperature in (0.0, 1.0):
        before = len(server.requests)
        reviser = teacher(endpoint(cache=None), temperature=temperature)
        collected(module(place, critic=teacher(endpoint()), reviser=reviser, revisions=2), speaker)
        bodies = [body for body in server.requests[before:] if prompt_of(body).count("|") == 2]
        seeds[temperature] = {body["seed"] for body in bodies}
        assert len(bodies) == 8 and all(body["temperature"] == temperature for body in bodies)
    assert seeds[0.0] == {0} and len(seeds[1.0]) == 8


def test_a_spent_budget_stops_the_run(server, endpoint, place, speaker):
    server.answer = lambda body: server.chat("it is 2")
    for knob in ("critic", "reviser"):
        teachers = {"critic": teacher(endpoint(cache=None))} | {knob: teacher(endpoint(cache=None, max_calls=1))}
        data = module(place, **teachers)
        with pytest.raises(RuntimeError, match=f"{knob}: endpoint.max_calls: the budget of 1 calls is spent"):
            collected(data, speaker)


def test_a_dead_server_stops_the_run(endpoint, place, speaker):
    data = module(place, critic=teacher(endpoint(url="http://127.0.0.1:9/v1", retries=0)))
    with pytest.raises(RuntimeError, match="critic: endpoint.url: no server answers"):
        collected(data, speaker)


def test_one_of_many_without_an_answer_is_left_out_and_more_stop_the_run(server, endpoint, place, speaker, prompt_of):
    """Five of twenty answers are empty, which is more than a tenth."""
    server.answer = lambda body: server.chat("" if QUESTIONS[0] in prompt_of(body) else "it is 2")
    data = module(place, critic=teacher(endpoint()), prompts=4, replies=5)
    with pytest.raises(RuntimeError, match="critic: 5 of 20 questions have no answer: the answer is empty"):
        collected(data, speaker)

    class Various(Speaker):
        """Policy whose five replies to a prompt are five different numbers."""

        def reply(self, *arguments, **how):
            tokens, *rest = super().reply(*arguments, **how)
            if self.kind(self.read[-1]) == "reply":
                numbers = torch.tensor([self.of.token(str(i)) for i in range(5)])
                tokens[:, 0] = numbers.repeat(len(tokens) // 5)
            return tokens, *rest

    various = Various(own_prompts.tokenizer(place), Wording(), reply="2")
    server.answer = lambda body: server.chat("" if prompt_of(body) == f"{QUESTIONS[0]} | 1" else "it is 2")
    with pytest.warns(UserWarning, match="critic: 1 of 20 questions have no answer"):
        collected(data, various)
    assert data.statistics["unheard"] == pytest.approx(1 / 20)


def test_questions_may_hold_facts_of_a_case(server, endpoint, place, speaker, prompt_of):
    """The kind of a prompt is a fact; a template with an unknown fact is refused before sampling."""
    server.answer = lambda body: server.chat("it is 2")
    critic = teacher(endpoint(), question=CritiqueQuestion(SHORT + " | {kind}"))
    reviser = teacher(endpoint(), revision=REVISED + " | {kind}")
    held_path = own_prompts.lines(place / "held_facts.jsonl", [{"prompt": "else", "facts": {"kind": "c"}}])
    task = own_prompts.prompts(place, val_path=held_path)
    with pytest.raises(ValueError, match="critic: case .* has no fact 'reference'"):
        module(place, critic=teacher(endpoint(), question=CritiqueQuestion(SHORT + "{reference}")), task=task)
    with pytest.raises(ValueError, match="reviser: case .* has no fact 'reference'"):
        module(place, critic=critic, reviser=teacher(endpoint(), revision=REVISED + "{reference}"), task=task)
    collected(module(place, critic=critic, reviser=reviser, task=task), speaker)
    questions = {prompt_of(body) for body in server.requests}
    assert {text.split(" | ")[-1] for text in questions} <= {"a", "b"} and len(questions) == 4


def test_a_judge_pays_for_attempts_and_revisions_and_is_counted(server, endpoint, place, speaker, prompt_of):
    """Four attempts and four revisions are scored, and four replies criticised: twelve feedback calls."""
    server.answer = lambda body: server.chat("3" if prompt_of(body).endswith("rate") else "it is 2")
    reward = JudgeReward(endpoint(), ScoreQuestion(low=1, high=5, template=SHORT + "rate"))
    data = module(place, critic=teacher(endpoint()), reward=reward)
    batch = collected(data, speaker)
    assert batch.score.tolist() == pytest.approx([0.5] * 8)  # 3 on the scale 1 to 5
    assert data.counters["feedback_calls"] == 12 and data.counters["critiques"] == 4


def test_a_template_without_its_places_is_refused(endpoint):
    with pytest.raises(ValueError, match="revision: placeholder {critique} is missing"):
        EndpointCritic(endpoint(), revision="{prompt} {response}")


def test_a_yaml_says_it_all(place):
    """The command line accepts it as critic and as reviser."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(RevisionDataModule, "data")
    served = {"endpoint": {"url": "http://localhost:8000/v1", "model": "judge", "cache": None}}
    teacher = {"class_path": "data_modules.feedback.providers.EndpointCritic", "init_args": served}
    model = {"class_path": "data_modules.text.ModelCritic", "init_args": {"max_new": 9}}
    people = {"class_path": "data_modules.feedback.FileCritic", "init_args": {"path": "people.jsonl"}}
    own_prompts.prompts(place)
    for critic, reviser in ((teacher, model), (model, teacher), (people, people), (model, None)):
        init_args = {
            "task": {"class_path": "data_modules.text.PromptFile", "init_args": {"path": str(place / "prompts.jsonl")}},
            "tokenizer": {"class_path": "data_modules.text.ByteTokenizer"},
            "critic": critic,
            "reviser": reviser,
        }
        config = {"data": {"class_path": "data_modules.text.RevisionDataModule", "init_args": init_args}}
        data = parser.instantiate_classes(parser.parse_object(config)).data
        assert type(data.critic).__name__ == critic["class_path"].rsplit(".")[-1]
        assert (data.reviser is None) == (reviser is None)
