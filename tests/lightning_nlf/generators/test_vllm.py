"""Replies of a fake vLLM server against the policy's own: tokens in, tokens out, weights, faults."""

import math

import pytest
import torch

from lightning_nlf.generators import GeneratorStopped, LoRASwap, Server, VLLMReplier
from lightning_nlf.generators.completions import Served, replies_in
from lightning_nlf.language import generation
from lightning_nlf.networks import DecoderShape, HuggingFacePolicy, LoRA, TransformerPolicy

STOP = (0, 7)
IDS, LENGTHS = torch.tensor([[2, 3, 4], [5, 9, 0], [8, 0, 0]]), torch.tensor([3, 2, 1])


def reply(replier, policy, ids=IDS, lengths=LENGTHS, state=None, **how):
    replier.follow(policy)
    return replier.reply(ids, lengths, state, **({"stop": STOP, "max_new": 6} | how))


# ---- tokens


@torch.no_grad()
@pytest.mark.parametrize("how", [{}, {"copies": 3}, {"limits": torch.tensor([0, 6, 2])}])
def test_greedy_replies_are_those_of_the_policy(replier, policy, how):
    theirs = reply(replier, policy, deterministic=True, **how)
    ours = generation.reply(policy, IDS, LENGTHS, stop=STOP, max_new=6, deterministic=True, **how)
    assert torch.equal(theirs[2], ours[2]) and len(set(theirs[2].tolist())) > 1
    assert torch.equal(theirs[0], ours[0])
    torch.testing.assert_close(theirs[1], ours[1], atol=1e-5, rtol=0)
    assert theirs[3] is None


@torch.no_grad()
def test_an_adapter_of_a_transformers_model_is_the_same_to_the_server(replier, folder, change):
    pytest.importorskip("peft")
    network = HuggingFacePolicy(weights=folder, lora=LoRA(r=2)).eval()
    change(network, 3)
    theirs = reply(replier, network, deterministic=True)
    ours = generation.reply(network, IDS, LENGTHS, stop=STOP, max_new=6, deterministic=True)
    assert torch.equal(theirs[0], ours[0])
    torch.testing.assert_close(theirs[1], ours[1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_log_probs_are_those_of_the_training_forward(replier, policy):
    tokens, log_probs, counts, _ = reply(replier, policy, copies=2, seeds=torch.arange(6) * 10)
    for row, (reply_tokens, chances, count) in enumerate(zip(tokens, log_probs, counts, strict=True)):
        prompt = IDS[row // 2, : LENGTHS[row // 2]]
        text = torch.cat([prompt, reply_tokens[:count]])
        expected = policy(text[None, :-1]).log_prob(text[None, 1:])[0, len(prompt) - 1 :]
        torch.testing.assert_close(chances[:count], expected, atol=1e-5, rtol=0)
        assert (reply_tokens[count:] == STOP[0]).all() and (chances[count:] == 0).all()


@torch.no_grad()
def test_a_second_turn_reads_the_whole_dialogue(replier, policy):
    """Row 0 has ended, so that rows 1 and 2 go on; `ids` begin with the last sampled token, as for the policy."""
    first, _, counts, state = reply(replier, policy, deterministic=True, resume=True)
    last = first[torch.arange(3), counts - 1]
    new, keep = torch.stack([last, torch.tensor([1, 6, 3])], 1)[1:], torch.tensor([1, 2])
    how = {"deterministic": True, "keep": keep}
    theirs = reply(replier, policy, new, torch.tensor([2, 2]), state, **how)
    _, _, _, ours_state = generation.reply(policy, IDS, LENGTHS, stop=STOP, max_new=6, deterministic=True, resume=True)
    ours = generation.reply(policy, new, torch.tensor([2, 2]), ours_state, stop=STOP, max_new=6, **how)
    assert torch.equal(theirs[0], ours[0]) and torch.equal(theirs[2], ours[2])
    torch.testing.assert_close(theirs[1], ours[1], atol=1e-5, rtol=0)


def test_what_is_sent(fake, replier, policy):
    policy.temperature = 2.0
    reply(replier, policy, copies=2, seeds=torch.tensor([5, 6, 7, 8, 2**62 + 9, 1]), temperature=0.25, top_k=4)
    bodies = sorted(fake.bodies("/completions"), key=lambda body: body["seed"])
    assert [(body["prompt"], body["n"], body["seed"]) for body in bodies] == [
        ([2, 3, 4], 2, 5),
        ([5, 9], 2, 7),
        ([8], 2, 9),
    ]
    assert bodies[0] | {"model": ""} == {
        "model": "", "prompt": [2, 3, 4], "n": 2, "max_tokens": 6, "seed": 5, "temperature": 0.5, "top_p": 1.0,
        "top_k": 4, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "ignore_eos": True, "stop_token_ids": [0, 7], "add_special_tokens": False, "logprobs": 0,
        "return_token_ids": True, "return_weight_versions": False,
    }  # fmt: skip


def test_a_limit_of_its_own_needs_a_request_of_its_own(fake, replier, policy):
    *_, counts, _ = reply(replier, policy, copies=2, limits=torch.tensor([4, 4, 1, 3, 0, 2]))
    bodies = sorted((body["prompt"], body["n"], body["max_tokens"]) for body in fake.bodies("/completions"))
    assert bodies == [([2, 3, 4], 2, 4), ([5, 9], 1, 1), ([5, 9], 1, 3), ([8], 1, 2)]
    assert counts[2] == 1 and counts[4] == 0 and counts.max() <= 4


def test_greedy_copies_are_asked_once(fake, replier, policy):
    tokens, *_ = reply(replier, policy, copies=3, deterministic=True)
    assert [body["n"] for body in fake.bodies("/completions")] == [1, 1, 1]
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])


# ---- weights


@torch.no_grad()
def test_the_server_follows_the_policy_under_a_new_name(fake, replier, policy, change):
    before = reply(replier, policy, deterministic=True)
    reply(replier, policy, deterministic=True)
    assert len(fake.bodies("/load_lora_adapter")) == 1  # nothing has changed
    change(policy, 2)
    after = reply(replier, policy, deterministic=True)
    ours = generation.reply(policy, IDS, LENGTHS, stop=STOP, max_new=6, deterministic=True)
    assert torch.equal(after[0], ours[0])
    assert before[0].shape != after[0].shape or not torch.equal(before[0], after[0])
    first, second = [body["lora_name"] for body in fake.bodies("/load_lora_adapter")]
    assert first != second and fake.adapters == [second]
    assert [body["lora_name"] for body in fake.bodies("/unload_lora_adapter")] == [first]
    routes = [path for path, _ in fake.requests if "completions" not in path]
    assert routes == ["/v1/load_lora_adapter", "/reset_prefix_cache", "/v1/unload_lora_adapter"] + routes[:2]


def test_the_smallest_change_is_noticed(fake, replier, policy):
    reply(replier, policy)
    trained = next(x for x in policy.parameters() if x.requires_grad)
    with torch.no_grad():
        trained.view(-1)[0] = torch.nextafter(trained.view(-1)[0], torch.tensor(9.0))
    reply(replier, policy)
    assert len(fake.bodies("/load_lora_adapter")) == 2


def test_adapters_are_deleted(fake, policy, tmp_path):
    server = Server(fake.url)
    replier = VLLMReplier(server, LoRASwap(server, str(tmp_path)))
    reply(replier, policy)
    (path,) = tmp_path.iterdir()
    assert {"adapter_config.json", "adapter_model.safetensors"} == {file.name for file in path.iterdir()}
    replier.close()
    assert not list(tmp_path.iterdir()) and not fake.adapters


def test_an_answer_by_other_weights_is_refused(fake, replier, policy):
    fake.change = lambda answer: answer | {"model": "lightning-nlf-0-1"}
    with pytest.raises(
        GeneratorStopped, match="comes from the model 'lightning-nlf-0-1', not from the current weights"
    ):
        reply(replier, policy)


def test_a_policy_without_an_adapter_is_refused(replier):
    network = TransformerPolicy(DecoderShape(vocabulary=12, layers=1, heads=2, width=8, context=8))
    with pytest.raises(ValueError, match="sync: lora needs a policy with a LoRA adapter"):
        replier.follow(network)


# ---- faults


def test_transient_faults_are_retried(fake, replier, policy, waits):
    fake.faults = [(503, {}), None, (429, {})]
    tokens, *_ = reply(replier, policy, deterministic=True)
    assert len(tokens) == 3 and len(fake.bodies("/completions")) == 6 and len(waits) == 3


def test_a_permanent_fault_is_one_clear_message(fake, replier, policy, waits):
    fake.faults = [(400, {"error": {"message": "This model's maximum\n context length is 8"}})] * 3
    with pytest.raises(
        GeneratorStopped, match=r"/v1/completions: HTTP 400: .*This model's maximum\\n context"
    ) as error:
        reply(replier, policy)
    assert not waits and "\n" not in str(error.value)


def test_a_server_that_dies_is_one_clear_message(fake, replier, policy, waits):
    fake.dead_after = 1
    with pytest.raises(GeneratorStopped, match="no answer from http://127.0.0.1:[0-9]+/v1 after 3 tries"):
        reply(replier, policy)


def test_a_server_without_adapters(fake, replier, policy, monkeypatch):
    monkeypatch.setattr(fake, "load", lambda name, folder: (404, {"detail": "Not Found"}))
    with pytest.raises(ValueError, match="loads no adapters; start it with --enable-lora"):
        reply(replier, policy)


def test_a_load_whose_answer_was_lost(fake, replier, policy, monkeypatch):
    load = fake.load

    def load_without_an_answer(name, folder):
        monkeypatch.setattr(fake, "load", load)
        load(name, folder)
        return 503, {}

    monkeypatch.setattr(fake, "load", load_without_an_answer)
    reply(replier, policy)
    assert len(fake.bodies("/load_lora_adapter")) == 2 and len(fake.adapters) == 1


def test_the_key_is_sent_and_not_repeated(fake, policy, monkeypatch):
    monkeypatch.setenv("SERVER_KEY", "secret-1")
    server = Server(fake.url, key_variable="SERVER_KEY")
    fake.faults = [(400, "no secret-1")] * 3
    with pytest.raises(GeneratorStopped) as error:
        reply(VLLMReplier(server, LoRASwap(server)), policy)
    assert "HTTP 400" in str(error.value) and "secret-1" not in str(error.value)
    monkeypatch.delenv("SERVER_KEY")
    with pytest.raises(ValueError, match="key_variable: the environment variable SERVER_KEY is not set"):
        server.post("/completions")


def test_a_redirection_is_not_followed(fake, replier, policy):
    fake.faults = [(307, {})] * 3
    with pytest.raises(GeneratorStopped, match="/v1/completions: HTTP 307"):
        reply(replier, policy)
    assert not fake.bodies("/elsewhere")


def test_what_the_environment_has_for_openai_is_not_sent(fake, replier, policy, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "secret-2")
    reply(replier, policy)
    assert len(fake.headers) == 5 and "secret-2" not in str(fake.headers)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "http://me:secret@host/v1"])
def test_an_invalid_url(url):
    with pytest.raises(ValueError, match="^url: "):
        Server(url)


WHOLE = {"index": 0, "token_ids": [3, 0], "prompt_token_ids": [2], "logprobs": {"token_logprobs": [-1, -0.5]}}


@pytest.mark.parametrize(
    "choice, why",
    [
        ({"token_ids": None}, "no token ids below 12; use vLLM 0.10.2"),
        ({"token_ids": [3, 12]}, "no token ids below 12"),
        ({"token_ids": [3, True]}, "no token ids below 12"),
        ({"prompt_token_ids": [1, 2]}, "read another prompt"),
        ({"logprobs": None}, "one log-probability a token"),
        ({"logprobs": {"token_logprobs": [-1.0, float("nan")]}}, "not a finite number of at most 0"),
        ({"logprobs": {"token_logprobs": [-1.0, 0.5]}}, "not a finite number of at most 0"),
        ({"logprobs": {"token_logprobs": [-1.0, -math.inf]}}, "not a finite number of at most 0"),
        ({"token_ids": [0, 3]}, "ends neither with a stop token nor at its limit"),
        ({"token_ids": [3, 4]}, "ends neither with a stop token nor at its limit of 3"),
        ({"token_ids": [], "logprobs": {"token_logprobs": []}}, "a reply of 0 tokens"),
        ({"weight_versions": [{"version": "w1", "start": 0, "end": 1}]}, "its weights are w1, but .* are w2"),
        ({"weight_versions": None}, "its weights are unknown, but the current ones are w2"),
    ],
)
def test_an_answer_that_cannot_be_used(choice, why):
    current = {"weight_versions": [{"version": "w2", "start": 0, "end": 2}]}
    answer = {"model": "m", "choices": [WHOLE | current | choice]}
    with pytest.raises(GeneratorStopped, match=f"^generation server: an answer cannot be used: .*{why}"):
        replies_in(answer, Served("m", "w2"), [2], 3, 1, STOP, 12)
    whole = {"model": "m", "choices": [WHOLE | current]}
    assert replies_in(whole, Served("m", "w2"), [2], 3, 1, STOP, 12) == [([3, 0], [-1.0, -0.5])]
