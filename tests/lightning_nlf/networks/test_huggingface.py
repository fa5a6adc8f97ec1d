"""Models of transformers as policies: logits, the token loop, LoRA and checkpoints."""

import sys

import pytest
import torch

from lightning_nlf.language import generation
from lightning_nlf.networks import HuggingFacePolicy, LoRA, ValueHead
from lightning_nlf.objectives import RLHFAgent
from lightning_nlf.objectives.reference_cache import digest

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

NONE = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 40} | NONE
CONFIGS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 40} | NONE,
    "llama": SMALL,
    "gemma2": SMALL | {"head_dim": 8, "sliding_window": 64, "final_logit_softcapping": 2.0},
}


def policy(kind: str = "gpt2", **how) -> HuggingFacePolicy:
    """Large weights, because a nearly uniform model would hide differences."""
    torch.manual_seed(0)
    network = HuggingFacePolicy(config={"model_type": kind} | CONFIGS[kind], **how).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 2 and "lora_" not in name:
                parameter *= 5
    return network


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_scores_are_those_of_the_model_wherever_they_are_asked_for(kind):
    network, ids = policy(kind), torch.randint(40, (3, 9))
    expected = network.bare(ids).logits
    torch.testing.assert_close(network(ids).logits, expected.log_softmax(-1), atol=1e-4, rtol=0)
    where = torch.zeros(3, 9, dtype=torch.bool)
    where[0, 2:4] = where[1, 6] = True
    assert network.direct == (kind != "gemma2")  # its scores are capped
    torch.testing.assert_close(network(ids, where).logits, expected.log_softmax(-1)[where], atol=1e-4, rtol=0)
    assert network.features(ids, where).shape == (3, 32)  # for a head of another network


SCALED = {
    "gemma2": {"head_dim": 8},
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 3.0},
    "granitemoe": {"logits_scaling": 3.0, "num_local_experts": 2, "num_experts_per_tok": 1},
}


@pytest.mark.parametrize("kind", SCALED)
def test_a_shared_value_learns_on_the_states_of_a_model_that_scales_or_caps_its_scores(kind, monkeypatch):
    monkeypatch.setitem(CONFIGS, kind, SMALL | SCALED[kind])
    network, ids = policy(kind), torch.randint(40, (3, 9))
    features = network.features(ids)
    assert not network.direct and features.shape == (3, 9, 32)
    torch.testing.assert_close(network.distribution(features).logits, network.bare(ids).logits.log_softmax(-1))
    value = ValueHead(width=32)
    torch.nn.init.ones_(value.head.weight)
    (value(features).sum() + network.distribution(features).log_prob(ids).sum()).backward()
    assert all(parameter.grad is not None for parameter in network.bare.get_output_embeddings().parameters())
    assert all(bool(p.grad.any()) for name, p in network.named_parameters() if "layers.0.self_attn" in name)


def test_a_model_whose_scores_are_made_of_more_than_its_states_is_refused(monkeypatch):
    """A model that adds to its scores when it reads tokens itself."""
    model = transformers.LlamaForCausalLM
    inner = model.forward

    def forward(self, input_ids=None, **how):
        out = inner(self, input_ids=input_ids, **how)
        out.logits = out.logits + (0 if input_ids is None else 1)
        return out

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ValueError, match="weights: the scores of a llama depend on more than its last hidden states"):
        policy("llama")


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_stored_log_probs_are_those_of_the_training_forward_over_two_turns(kind):
    """Prompts of different lengths; rows stop early, leave the batch, and return for the second turn."""
    network = policy(kind, temperature=0.7)
    prompts = [[2, 3, 4], [5, 9], [7], [8, 8, 8, 8], [2, 3], [4]]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    stop, seeds = tuple(range(8)), torch.arange(6)
    first, first_log_probs, ends, state = generation.reply(
        network, ids, lengths, stop=stop, max_new=9, seeds=seeds, resume=True
    )
    assert int(ends.min()) < 4 and int(ends.max()) > 5  # so that rows left the batch
    new = torch.stack([first[torch.arange(6), ends - 1], torch.full((6,), 33)], 1)
    second, second_log_probs, second_ends, _ = generation.reply(
        network, new, torch.full((6,), 2), state, stop=stop, max_new=9, seeds=seeds + 6
    )
    for row, prompt in enumerate(prompts):
        a, b = int(ends[row]), int(second_ends[row])
        tokens = torch.cat([torch.tensor(prompt), first[row, :a], torch.tensor([33]), second[row, :b]])
        log_probs = network(tokens[None, :-1]).log_prob(tokens[None, 1:])[0]
        start = len(prompt) - 1
        torch.testing.assert_close(log_probs[start : start + a], first_log_probs[row, :a], atol=1e-4, rtol=0)
        torch.testing.assert_close(log_probs[start + a + 1 :], second_log_probs[row, :b], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_copies_of_a_prompt_say_what_separate_prompts_say(kind):
    """Three prompts of different lengths, with three replies each. The prompts are read once, in three rows."""
    network, rows = policy(kind), []
    prompts, lengths = torch.tensor([[2, 3, 4, 9], [5, 9, 0, 0], [8, 0, 0, 0]]), torch.tensor([4, 2, 1])
    how = {"stop": tuple(range(8)), "max_new": 9, "seeds": torch.arange(9)}
    separate = generation.reply(network, prompts.repeat_interleave(3, 0), lengths.repeat_interleave(3), **how)
    network.bare.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    shared = generation.reply(network, prompts, lengths, copies=3, **how)
    assert torch.equal(shared[0], separate[0]) and torch.equal(shared[2], separate[2])
    torch.testing.assert_close(shared[1], separate[1], atol=1e-4, rtol=0)
    assert rows[0] == 3 and len(shared[2].unique()) > 2 and len(shared[0].unique(dim=0)) > 6


def test_lora_trains_its_additions_only_and_the_frozen_policy_is_the_base_in_the_same_memory():
    network = policy(lora=LoRA(r=2))
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    frozen, ids = network.frozen(), torch.randint(40, (2, 5))
    assert not list(frozen.parameters())
    before, identity = network(ids).logits.detach(), digest(frozen)
    torch.testing.assert_close(frozen(ids).logits, before)  # an addition is initially 0
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        network(ids).log_prob(ids).sum().backward()
        optimizer.step()
    assert not torch.allclose(network(ids).logits, before, atol=1e-2)
    torch.testing.assert_close(frozen(ids).logits, before)
    assert digest(frozen) == identity
    assert all(parameter.requires_grad for name, parameter in network.named_parameters() if name in trained)


@torch.no_grad()
def test_the_export_has_the_additions_in(tmp_path):
    network, ids = policy(lora=LoRA(r=2, alpha=32)), torch.randint(40, (2, 5))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    network.export(tmp_path)
    exported = HuggingFacePolicy(weights=str(tmp_path)).eval()
    torch.testing.assert_close(exported(ids).logits, network(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_additions_to_weights_that_are_tied_are_refused(target, monkeypatch):
    monkeypatch.setitem(CONFIGS, "llama", SMALL | {"tie_word_embeddings": True})
    with pytest.raises(ValueError, match=rf"^lora: target_modules: (\S+\.)?{target} shares its weights"):
        policy("llama", lora=LoRA(r=2, target_modules=["q_proj", target]))


@pytest.mark.parametrize(
    ("targets", "tied"),
    [(["lm_head"], False), (["embed_tokens"], False), (["q_proj", "down_proj"], True), (None, True)],
)
@torch.no_grad()
def test_the_exported_model_is_ours_wherever_additions_are(targets, tied, monkeypatch, tmp_path):
    monkeypatch.setitem(CONFIGS, "llama", SMALL | {"tie_word_embeddings": tied})
    network, ids = policy("llama", lora=LoRA(r=2, alpha=8, target_modules=targets)), torch.randint(40, (2, 9))
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.normal_(std=0.3)
    network.export(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(ids).logits.log_softmax(-1), network(ids).logits, atol=1e-5, rtol=0)


def test_rows_longer_than_the_context_and_strange_tokens_are_refused():
    network = policy()
    with pytest.raises(ValueError, match="65 tokens is longer than the model's context of 64"):
        network(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match="context of 64"):
        network.read(torch.zeros(1, 40, dtype=torch.long), torch.tensor([40]), room=26)
    with pytest.raises(ValueError, match="token 40 is outside the vocabulary of 40"):
        network(torch.tensor([[40]]))


@torch.no_grad()
def test_so_are_those_of_one_token_when_a_reply_begins():
    network, single = policy(), torch.tensor([1])
    network.read(torch.tensor([[1]]), single, room=64)  # whose last token is never read
    with pytest.raises(ValueError, match="65 tokens is longer than the model's context of 64"):
        network.read(torch.tensor([[1]]), single, room=65)
    with pytest.raises(ValueError, match="token 40 is outside the vocabulary of 40"):
        network.read(torch.tensor([[40]]), single, room=2)
    _, state = network.read(torch.ones(1, 60, dtype=torch.long), torch.tensor([60]))
    with pytest.raises(ValueError, match="65 tokens is longer than the model's context of 64"):
        network.read(torch.tensor([[1]]), single, state, room=5)  # another turn


@pytest.mark.parametrize(("extra", "knobs"), [("transformers", {}), ("peft", {"lora": LoRA()})])
def test_a_missing_extra_is_named(extra, knobs, monkeypatch):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(ValueError, match=rf"{extra} is not installed; run pip install lightning_nlf\[text\]"):
        HuggingFacePolicy(config={"model_type": "gpt2"} | CONFIGS["gpt2"], **knobs)


def test_neither_weights_nor_config_and_missing_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weights: set a folder"):
        HuggingFacePolicy()
    with pytest.raises(ValueError, match="has no config.json, so it is not a model in the Hugging Face layout"):
        HuggingFacePolicy(weights=str(tmp_path))
    with pytest.raises(ValueError, match="no file"):
        HuggingFacePolicy(weights="nowhere.ckpt")


@pytest.mark.parametrize("from_folder", [False, True])
def test_dropout_of_a_config_is_not_followed_so_the_first_ratio_is_1(from_folder, tmp_path):
    """GPT-2's config sets dropout .1 in three places."""
    if from_folder:
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIGS["gpt2"])).save_pretrained(tmp_path)
        model = HuggingFacePolicy(weights=str(tmp_path), lora=LoRA(r=2))
    else:
        model = policy()
    ids = torch.randint(40, (3, 20))
    acted, learns = model.eval()(ids).log_prob(ids), model.train()(ids).log_prob(ids)
    torch.testing.assert_close((learns - acted).exp(), torch.ones(3, 20), atol=1e-4, rtol=0)
    RLHFAgent(policy=model, value=ValueHead(width=32))  # which refuses any dropout


@pytest.mark.parametrize("kind", CONFIGS)
def test_dropout_that_is_asked_for_is_there_in_training_only(kind):
    network, ids = policy(kind, dropout=0.3), torch.randint(40, (3, 20))
    assert torch.equal(network(ids).logits, network(ids).logits)
    network.train()
    assert not torch.allclose(network(ids).logits, network(ids).logits, atol=1e-3)
    with pytest.raises(ValueError, match="dropout: got 1.0, must be at least 0 and below 1"):
        policy(kind, dropout=1.0)
