"""Compare a running vLLM server with the policy's own sampling, with a LoRA adapter of random weights:

    python benchmarks/generation_server.py --weights FOLDER --url http://127.0.0.1:8000/v1

docs/speed.md has the command of the server. Prints whether greedy replies are equal, how far the log-probabilities of
sampled tokens are apart, also with temperature and top-k, whether a second adapter takes effect, and tokens per second.
"""

from __future__ import annotations

import argparse
import time

import torch

from lightning_nlf.generators import LoRASwap, Server, VLLMReplier
from lightning_nlf.language import generation
from lightning_nlf.maths.kl import k3
from lightning_nlf.networks import LoRA, TransformerPolicy


def prompts(count: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of 8 to 32 random tokens: ids (count, 32), lengths (count,)."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 33, (count,), generator=generator)
    return torch.randint(100, vocabulary, (count, 32), generator=generator), lengths


def randomise(policy: TransformerPolicy, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for x in policy.parameters():
        if x.requires_grad:
            x.data.copy_(size * torch.randn(x.shape, generator=generator))


@torch.no_grad()
def log_ratios(
    policy: TransformerPolicy,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    replies: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    copies: int,
    temperature: float = 1.0,
    top_k: int = 0,
) -> torch.Tensor:
    """log π_trainer − log π_server of all sampled tokens, both with temperature and top-k, (N,)."""
    ratios = []
    for row, (tokens, log_probs, count) in enumerate(zip(*replies, strict=True)):
        prompt = ids[row // copies, : lengths[row // copies]]
        text = torch.cat([prompt, tokens[:count]])
        logits = policy(text[None, :-1]).logits[0, len(prompt) - 1 :] / temperature
        chances = generation.truncated(logits, top_k, 1.0).log_softmax(-1)
        ratios.append(chances.gather(-1, tokens[:count, None])[:, 0] - log_probs[:count])
    return torch.cat(ratios)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="the base model's folder, which the server serves")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--new", type=int, default=64, help="tokens a reply")
    words = parser.parse_args()
    policy = TransformerPolicy(weights=words.weights, lora=LoRA(r=8)).eval()
    server = Server(words.url)
    replier = VLLMReplier(server, LoRASwap(server))
    ids, lengths = prompts(words.prompts, policy.vocabulary)
    seeds = torch.arange(words.prompts * words.copies) * 1000
    how = {"stop": (0, 2), "max_new": words.new}
    greedy = []
    for seed in (1, 2):
        randomise(policy, seed, 0.02)
        begin = time.perf_counter()
        replier.follow(policy)
        print(f"adapter {seed}: loaded in {time.perf_counter() - begin:.2f} s")
        theirs = replier.reply(ids, lengths, deterministic=True, **how)
        ours = generation.reply(policy, ids, lengths, deterministic=True, **how)
        greedy.append(theirs[0])
        equal = sum(
            torch.equal(a[:n], b[:m]) for a, b, n, m in zip(theirs[0], ours[0], theirs[2], ours[2], strict=True)
        )
        print(f"adapter {seed}: {equal} of {len(ids)} greedy replies are equal token by token")
        begin = time.perf_counter()
        sampled = replier.reply(ids, lengths, copies=words.copies, seeds=seeds, **how)
        seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        local = generation.reply(policy, ids, lengths, copies=words.copies, seeds=seeds, **how)
        local_seconds = time.perf_counter() - begin
        ratios = log_ratios(policy, ids, lengths, sampled[:3], words.copies)
        kl, largest = float(k3(-ratios).mean()), float(ratios.abs().max())
        print(f"adapter {seed}: {len(ratios)} sampled tokens, mismatch KL {kl:.2e}, largest |log ratio| {largest:.2e}")
        print(
            f"adapter {seed}: tokens/s: server {int(sampled[2].sum()) / seconds:.0f}, "
            f"own {int(local[2].sum()) / local_seconds:.0f}"
        )
        again = replier.reply(ids, lengths, copies=words.copies, seeds=seeds, **how)
        print(f"adapter {seed}: the same seeds give the same tokens: {torch.equal(again[0], sampled[0])}")
    repeated = sum(torch.equal(a, b) for a, b in zip(*greedy, strict=True)) if greedy[0].shape == greedy[1].shape else 0
    print(f"{repeated} of {len(ids)} greedy replies are those of the other adapter")
    sharper = {"temperature": 0.7, "top_k": 20}
    sampled = replier.reply(ids, lengths, copies=words.copies, seeds=seeds, **how, **sharper)
    ratios = log_ratios(policy, ids, lengths, sampled[:3], words.copies, **sharper)
    inside = ratios.isfinite()  # rounding may change which tokens are the k most likely
    largest = float(ratios[inside].abs().max())
    print(f"temperature 0.7, top_k 20: {len(ratios)} tokens, {int((~inside).sum())} of them not in the policy's top 20")
    print(f"temperature 0.7, top_k 20: largest |log ratio| of the rest {largest:.2e}")
    replier.close()


if __name__ == "__main__":
    main()
