"""Language models on our decoder: results do not depend on sharing and padding; token loop, heads and weights."""

import pytest
import torch

from lightning_nlf.language import generation
from lightning_nlf.networks import (
    DecoderShape,
    TransformerPolicy,
    TransformerQValue,
    TransformerReward,
    TransformerValue,
    ValueHead,
)

FAMILIES = ["gpt2", "llama", "qwen2", "qwen3"]


def shape(family="gpt2", context=40, **how):
    kv_heads = {"gpt2": 4, "llama": 2, "qwen2": 1, "qwen3": 4}[family]
    head_width = 16 if family == "qwen3" else 0
    return DecoderShape(30, 2, 4, 32, context, family, kv_heads=kv_heads, head_width=head_width, **how)


def policy(family="gpt2", network=TransformerPolicy, how=None, **knobs):
    """Large weights, because a nearly uniform model would hide differences."""
    torch.manual_seed(0)
    built = network(shape(family, **(how or {})), **knobs).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return built


def shared_rows():
    """12 rows of 16 ids: three replies to each of three prompts, one row repeated three times; and requested places."""
    torch.manual_seed(1)
    prompts = torch.randint(30, (3, 8)).repeat_interleave(3, 0)
    ids = torch.cat([torch.cat([prompts, torch.randint(30, (9, 8))], 1), torch.randint(30, (1, 16)).repeat(3, 1)])
    steps = torch.arange(16)
    return ids, (steps >= 7) & (steps < torch.tensor([9, 16, 12] * 4)[:, None])


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_beginnings_changes_neither_states_nor_gradients(family):
    network = policy(family)
    ids, where = shared_rows()
    ways = []
    for places in (where, None):
        network.zero_grad()
        log_probs = network(ids).log_prob(ids)[where] if places is None else network(ids, places).log_prob(ids[places])
        (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()
        ways.append((log_probs.detach(), {n: p.grad.clone() for n, p in network.named_parameters()}))
    torch.testing.assert_close(ways[0][0], ways[1][0], atol=1e-5, rtol=0)
    # row by row there is no sharing and no padding
    apart = torch.cat([network(row[None]).log_prob(row[None]) for row in ids])
    torch.testing.assert_close(apart[where], ways[0][0], atol=1e-5, rtol=0)
    for name, gradient in ways[0][1].items():
        torch.testing.assert_close(gradient, ways[1][1][name], atol=1e-4, rtol=1e-4, msg=name)


def test_padding_and_rows_that_nobody_asks_about_do_not_count():
    network = policy()
    ids, where = shared_rows()
    noise = ids.clone()
    noise[~(where.flip(1).cumsum(1).flip(1) > 0)] = 3  # after the last requested place
    torch.testing.assert_close(network.features(noise, where), network.features(ids, where))
    where[4:] = False
    torch.testing.assert_close(network.features(ids, where), network.features(ids[:4], where[:4]))
    assert network.features(ids, torch.zeros_like(where)).shape == (0, 32)


@pytest.mark.parametrize("chunk", [1024, 9])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_stored_log_probs_are_those_of_the_training_forward_over_three_turns(family, chunk, monkeypatch):
    """Prompts of different lengths with two replies each, read at once, or two or three at a time.

    Rows stop early, leave the batch, and return.
    """
    monkeypatch.setattr(TransformerPolicy, "CHUNK", chunk)
    network = policy(family, temperature=1.5, how={"context": 64})
    torch.manual_seed(2)
    lengths = torch.tensor([3, 2, 1, 4, 2, 1])
    ids = torch.randint(8, 30, (6, 4))
    of = torch.arange(12) // 2
    texts = [ids[row, : lengths[row]] for row in of]
    pieces: list[list] = [[] for _ in of]
    state, copies = None, 2
    for turn in range(3):
        tokens, log_probs, ends, state = generation.reply(
            network, ids, lengths, state, stop=(0, 1, 2, 3), max_new=9, copies=copies, resume=turn < 2
        )
        assert int(ends.min()) < 4 and int(ends.max()) > 5  # so that rows left the batch
        for row in range(12):
            pieces[row].append((len(texts[row]) - 1, log_probs[row, : ends[row]]))
            texts[row] = torch.cat([texts[row], tokens[row, : ends[row]], torch.tensor([9, 9][: 1 + row % 2])])
        # the state has not read the last token, so that one or two more tokens are new
        lengths, copies = 2 + torch.arange(12) % 2, 1
        ids = torch.stack([tokens[torch.arange(12), ends - 1], torch.full((12,), 9), torch.full((12,), 9)], 1)
    for row in range(12):
        now = network(texts[row][None, :-1]).log_prob(texts[row][None, 1:])[0]
        for start, log_probs in pieces[row]:
            torch.testing.assert_close(now[start : start + len(log_probs)], log_probs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_row_with_nothing_new_stays_where_it_is():
    network = policy()
    ids, lengths = torch.randint(30, (2, 5)), torch.tensor([5, 3])
    _, state = network.read(ids, lengths, room=3)
    _, state = network.read(torch.tensor([[7], [7]]), torch.tensor([1, 0]), state)
    logits, _ = network.read(torch.tensor([[8], [8]]), torch.tensor([1, 1]), state)
    row = torch.cat([ids[1, :3], torch.tensor([8])])
    torch.testing.assert_close(logits[1].log_softmax(-1), network(row[None]).logits[0, -1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_temperature_divides_the_scores_everywhere():
    cold, hot = policy(), policy(temperature=2.0)
    ids = torch.randint(30, (2, 6))
    torch.testing.assert_close(hot.scores(hot.features(ids)) * 2, cold.scores(cold.features(ids)))
    logits, _ = hot.read(ids, torch.tensor([6, 6]))
    torch.testing.assert_close(logits.log_softmax(-1), hot(ids).logits[:, -1], atol=1e-5, rtol=0)


def test_bfloat16_is_near_and_log_probs_are_float32():
    network = policy()
    ids, where = shared_rows()
    exact = network(ids, where).log_prob(ids[where])
    with torch.autocast("cpu", torch.bfloat16):
        near = network(ids, where).log_prob(ids[where])
        logits, _ = network.read(ids, torch.full((12,), 16))
    assert near.dtype == logits.dtype == torch.float32
    assert 0 < (near - exact).abs().mean() < 0.1


def test_dropout_is_for_training_only():
    network = policy(dropout=0.5)
    ids = torch.randint(30, (2, 6))
    torch.testing.assert_close(network(ids).logits, policy()(ids).logits)
    network.train()
    assert not torch.allclose(network(ids).logits, network(ids).logits)


@pytest.mark.parametrize("length", [41, 50])
def test_rows_longer_than_the_context_are_refused(length):
    with pytest.raises(ValueError, match=f"a row of {length} tokens is longer than the context of 40"):
        policy()(torch.zeros(1, length, dtype=torch.long))


@torch.no_grad()
def test_a_prompt_and_a_reply_that_do_not_fit_the_context_are_refused_before_the_reply():
    """The last token of a reply is never read: 31 + 10 − 1 tokens fit in 40, 32 + 10 − 1 do not."""
    network = policy()
    generation.reply(network, torch.ones(1, 31, dtype=torch.long), torch.tensor([31]), stop=(0,), max_new=10)
    with pytest.raises(ValueError, match="32 tokens and a reply of up to 10 .* the context of 40"):
        generation.reply(network, torch.ones(1, 32, dtype=torch.long), torch.tensor([32]), stop=(0,), max_new=10)
    _, state = network.read(torch.ones(2, 40, dtype=torch.long), torch.tensor([40, 1]))
    network.read(torch.ones(2, 1, dtype=torch.long), torch.tensor([0, 1]), state)
    with pytest.raises(ValueError, match="41 tokens"):
        network.read(torch.ones(2, 1, dtype=torch.long), torch.tensor([1, 1]), state)


def test_tokens_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="token 30 is outside the vocabulary of 30"):
        policy()(torch.tensor([[30]]))
    with pytest.raises(ValueError, match="token 30"):
        policy().read(torch.tensor([[1, 30]]), torch.tensor([2]))
    with pytest.raises(ValueError, match="token 30"):
        policy().read(torch.tensor([[30]]), torch.tensor([1]), room=1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0}, "shape.layers: got 0"),
        ({"width": 30}, "heads 4, head_width 7, width 30"),
        ({"kv_heads": 2}, "gpt2 needs kv_heads = heads"),
        ({"family": "llama", "kv_heads": 3}, "got 3, but it must divide the number of heads, 4"),
        ({"family": "llama", "head_width": 5}, "got 5, but rotary positions need an even number"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        DecoderShape(**{"vocabulary": 30, "layers": 2, "heads": 4, "width": 32} | sizes)


@pytest.mark.parametrize(
    ("knobs", "message"), [({"temperature": 0.0}, "temperature: got 0.0"), ({"dropout": 1.0}, "dropout: got 1.0")]
)
def test_wrong_knobs_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        TransformerPolicy(shape(), **knobs)


# ---- heads


def test_critics_begin_at_0_and_give_one_number_a_step():
    ids, where = shared_rows()
    for value in (TransformerValue(shape()), ValueHead(32)):
        inputs = policy().features(ids, where) if isinstance(value, ValueHead) else ids
        places = () if isinstance(value, ValueHead) else (where,)
        assert value(inputs, *places).shape == (int(where.sum()),) and (value(inputs, *places) == 0).all()
    q = policy(network=TransformerQValue)
    torch.testing.assert_close(q(ids, ids, where), q(ids, ids)[where], atol=1e-5, rtol=0)
    assert not torch.equal(q(ids, ids), q(ids, ids.flip(1)))
    assert ValueHead.on_policy and not TransformerValue.on_policy


def test_weights_begin_with_their_std_and_what_adds_to_the_stream_with_less():
    """Two layers: weights that add to the stream are 1/√4 smaller, .1 and .05. Another init_std is no other shape."""
    torch.manual_seed(0)
    shape = {"vocabulary": 300, "layers": 2, "heads": 2, "width": 64, "context": 8}
    policy = TransformerPolicy(DecoderShape(**shape, init_std=0.1))
    weights = dict(policy.decoder.named_parameters())
    assert abs(weights["embed.weight"].std() - 0.1) < 0.005
    assert {name for name, x in weights.items() if x.ndim == 2 and abs(x.std() - 0.05) < 0.005} == {
        name for name in weights if name.endswith(("out.weight", "down.weight"))
    }
    hyper_parameters = {"policy": {"init_args": policy.arguments()}}
    TransformerPolicy(DecoderShape(**shape)).check_origin(hyper_parameters, "a.ckpt")


def test_the_reward_head_begins_normal_with_std_one_over_root_width_plus_one():
    """With width 399: std 1 / √400 = .05, and a bias of 0."""
    reward = TransformerReward(DecoderShape(5, 1, 1, 399, 4))
    assert abs(reward.head.weight.std() - 0.05) < 0.01 and reward.head.bias == 0
    ids, where = shared_rows()
    reward = policy(network=TransformerReward)
    torch.testing.assert_close(reward(ids, where), reward(ids)[where], atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert reward(ids, where).dtype == torch.float32


# ---- weights


def save(network, path, role):
    torch.save({"state_dict": {f"{role}.{key}": x for key, x in network.state_dict().items()}}, path)
    return str(path)


def test_a_reward_begins_with_the_policys_decoder_and_a_fresh_head(tmp_path):
    first = policy()
    weights = save(first, tmp_path / "sft.ckpt", "policy")
    for network in (TransformerReward, TransformerValue, TransformerQValue):
        begun = network(shape(), weights=weights)
        torch.testing.assert_close(begun.decoder.state_dict(), first.decoder.state_dict())
    reward = policy(network=TransformerReward)
    again = TransformerReward(shape(), weights=save(reward, tmp_path / "reward.ckpt", "reward"))
    torch.testing.assert_close(again.state_dict(), reward.state_dict())


def test_weights_of_another_shape_and_of_none_are_refused(tmp_path):
    weights = save(policy(), tmp_path / "sft.ckpt", "policy")
    for network in (TransformerPolicy, TransformerReward):
        with pytest.raises(ValueError, match="does not fit this one"):
            network(DecoderShape(30, 3, 4, 32, 40), weights=weights)
    with pytest.raises(ValueError, match="does not record it"):
        TransformerPolicy(weights=weights)
    with pytest.raises(ValueError, match="shape: set it"):
        TransformerPolicy()
