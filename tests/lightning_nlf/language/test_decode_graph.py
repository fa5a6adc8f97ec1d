"""The step that a GPU replays gives the results of the token loop. The last test needs a GPU.

Before it, a stand-in for CUDA graphs records the operations of a step, and repeats them on the same tensors.
"""

import gc
import weakref

import pytest
import torch

from lightning_nlf.language import decode_graph, generation
from lightning_nlf.networks import DecoderShape, LoRA, TransformerPolicy
from tests.gpu.recorded_graph import RecordedGraph, recorded_graphs

STOP = (0, 7)


def policy(family="gpt2", tied=True):
    torch.manual_seed(0)
    grouped = 2 if family == "llama" else 0
    network = TransformerPolicy(
        DecoderShape(23, layers=2, heads=4, kv_heads=grouped, width=32, context=90, family=family, tied=tied)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)  # an untrained head would give the same scores everywhere
    return network


def two_turns(network, seed=0, **how):
    """Six dialogues, one with an empty second turn: tokens, log-probabilities and lengths of both turns."""
    torch.manual_seed(seed)
    ids, lengths = torch.randint(1, 23, (3, 9)), torch.tensor([9, 4, 6])
    how = {"stop": STOP, "max_new": 20} | how
    *first, state = generation.reply(
        network, ids, lengths, copies=2, resume=True, seeds=torch.arange(6) + 10 * seed, **how
    )
    last = first[0][torch.arange(6), first[2] - 1]
    new = torch.stack([last, torch.randint(1, 23, (6,))], 1)
    limits = torch.tensor([20, 20, 3, 0, 20, 1])
    second = generation.reply(
        network, new, torch.full((6,), 2), state, seeds=torch.arange(6) + 99, limits=limits, **how
    )[:3]
    return [*first, *second]


@pytest.fixture
def replayed(monkeypatch):
    """`generation.reply` with the step, called directly instead of replayed by a GPU."""

    def switch(on):
        monkeypatch.setattr(decode_graph, "fits", lambda policy, logits: on)

    return switch


@pytest.mark.parametrize(
    "sampling", [{}, {"top_k": 5, "top_p": 0.9, "temperature": 0.7}, {"deterministic": True}], ids=str
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_step_says_what_the_loop_says(replayed, family, sampling):
    network = policy(family, tied=family == "gpt2")
    for seed, context in ((0, torch.inference_mode), (1, torch.no_grad), (2, torch.inference_mode)):
        with context():
            replayed(False)
            expected = two_turns(network, seed, **sampling)
            replayed(True)
            counts = two_turns(network, seed, **sampling)
        assert len(expected[2].unique()) > 1 or "deterministic" in sampling
        for ours, plain in zip(counts, expected, strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
        with torch.no_grad():  # an optimizer step: the same step must use the new weights
            for parameter in network.parameters():
                parameter *= 1.05
    assert len(decode_graph._graphs[network]) == 1  # which all six turns shared


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_rounded_for_every_reply(replayed, tied):
    network = policy("llama", tied=tied)

    def replies(on):
        replayed(on)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return two_turns(network)

    before = replies(True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= -1
    after, expected = replies(True), replies(False)
    (step,) = decode_graph._graphs[network].values()
    parameters = dict(network.named_parameters())
    assert step.store.dtype == torch.bfloat16 and len(step.rounded) > 8
    parameters["output"] = network.head.weight  # also rounded once if it is the embedding, which itself is not
    assert "output" in step.rounded and "policy.decoder.embed.weight" not in step.rounded
    for name, rounded in step.rounded.items():
        assert torch.equal(rounded, parameters[name.removeprefix("policy.")].to(torch.bfloat16))
    assert not torch.equal(before[0], after[0])
    # bfloat16: as long as both sample the same tokens, probabilities are nearly equal
    for tokens, log_probs in ((0, 1), (3, 4)):
        equal = (after[tokens] == expected[tokens]).long().cumprod(1).bool()
        assert equal.float().mean() > 0.5
        torch.testing.assert_close(after[log_probs][equal], expected[log_probs][equal], atol=0.1, rtol=0.1)


def test_a_step_neither_asks_the_host_nor_leaves_the_device():
    """On the meta device, reading a value, or mixing it with another device, raises an error."""
    network = policy().to("meta")
    step = decode_graph.DecodeStep(network, 4, 64, 20, torch.float32, STOP, generation.Draw(top_k=5, top_p=0.9))
    with torch.no_grad(), RecordedGraph():  # which also refuses a number on the CPU among tensors of the device
        step.step()
    assert {x.device.type for x in vars(step).values() if isinstance(x, torch.Tensor)} == {"meta"}
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(step.running.any())


def test_steps_are_few_and_go_with_their_policy(replayed):
    network = policy()
    replayed(True)
    ids = torch.randint(1, 23, (2, 5))
    for rows in (1, 2):
        for capacity in (3, 4, 5):
            with torch.no_grad():
                generation.reply(network, ids[:rows], torch.full((rows,), 5), stop=STOP, max_new=capacity)
    assert len(decode_graph._graphs[network]) == decode_graph.KEPT
    reference = weakref.ref(network)
    del network
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("lora", [None, LoRA(r=2, target_modules=["q_proj", "up_proj"])])
def test_the_recorded_operations_say_what_the_loop_says(replayed, half, lora):
    """The capture runs as on a GPU. Three replies share it, with other prompts, limits and weights."""
    torch.manual_seed(0)
    network = TransformerPolicy(
        DecoderShape(23, layers=2, heads=4, kv_heads=2, width=32, context=90, family="llama"), lora=lora
    )
    replayed(False)
    for seed in range(3):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            expected = two_turns(network, seed)
            with recorded_graphs():
                replies = two_turns(network, seed)
        if not half:
            for ours, plain in zip(replies, expected, strict=True):
                torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
        width = min(replies[0].shape[1], expected[0].shape[1])  # a reply may differ after a rounding
        equal = (replies[0][:, :width] == expected[0][:, :width]).long().cumprod(1).bool()
        assert equal.float().mean() > 0.5
        ours, plain = replies[1][:, :width][equal], expected[1][:, :width][equal]
        torch.testing.assert_close(ours, plain, atol=0.1, rtol=0.1)
    if lora is None:  # with LoRA, only a GPU keeps the merged weights at one address
        (step,) = decode_graph._graphs[network].values()
        assert step.replay.__self__.replays > 60


def test_a_recorded_capture_refuses_to_read_a_value():
    reads = pytest.raises(RuntimeError, match="the host reads a value")
    with reads, recorded_graphs(), torch.cuda.graph(torch.cuda.CUDAGraph()):
        bool(torch.ones(2).any())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("half", [False, True])
def test_a_graph_says_what_the_loop_says(replayed, half):
    network = policy("llama", tied=False).cuda()
    counts = {}
    for on in (False, True):
        replayed(on)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half):
            ids, lengths = torch.arange(1, 22).view(3, 7).cuda(), torch.tensor([7, 5, 2]).cuda()
            how = {"stop": STOP, "max_new": 40, "seeds": torch.arange(3)}
            counts[on] = [generation.reply(network, ids, lengths, **how)[:3] for _ in range(2)]
    tolerance = 0.05 if half else 1e-4
    for replies in zip(*counts.values(), strict=True):
        torch.testing.assert_close(*(reply[1][:, 0] for reply in replies), atol=tolerance, rtol=tolerance)
        if not half:
            assert torch.equal(*(reply[0] for reply in replies))
