"""Replies of a language policy sampled by a vLLM server, tokens in and tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_nlf.generators.completions import Sampling, Served, replies_in
from lightning_nlf.generators.fingerprint import fingerprint
from lightning_nlf.generators.generator import WeightSync
from lightning_nlf.generators.server import Server
from lightning_nlf.networks import Policy

LARGEST_SEED = 2**62  # vLLM adds the number of the copy, and the sum must fit into 64 bits


class VLLMReplier:
    """A `Generator` on a server with vLLM's completions API.

    Prompts are sent as token ids, and replies come back as token ids, so no text is tokenised again. The state of a
    dialogue is the list of its tokens, which the server finds in its prefix cache. The log-probabilities are those of
    the distribution that was sampled from, if the server runs with `--logprobs-mode processed_logprobs`.

    The first seed of a group of copies is sent, and the server derives those of the other copies. Replies depend on
    the seeds, but differ from those that the policy would sample itself.

    Args: server: the connection; sync: how the weights get to the server.
    """

    def __init__(self, server: Server, sync: WeightSync) -> None:
        self.server, self.sync = server, sync
        self.temperature, self.vocabulary = 1.0, 0
        self._served: Served | None = None
        self._mark: bytes | None = None

    def follow(self, policy: Policy) -> None:
        """`Generator.follow`."""
        mark = fingerprint(policy)
        if self._served is None or mark != self._mark:
            self._served = None  # until the server has the new weights
            self._served = self.sync.push(policy)
            self._mark = mark
        self.temperature, self.vocabulary = policy.temperature, policy.vocabulary or 0

    def close(self) -> None:
        """Remove the weights from the server. A later `follow` sends them again."""
        self._served = None
        self.sync.close()

    def reply(
        self,
        ids: Tensor,
        lengths: Tensor,
        state: list[list[int]] | None = None,
        *,
        stop: Sequence[int],
        max_new: int,
        copies: int = 1,
        seeds: Tensor | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        temperature: float = 1.0,
        deterministic: bool = False,
        resume: bool = False,
        keep: Tensor | None = None,
        limits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, list[list[int]] | None]:
        """`Replier.reply`. The results are on the device of `ids`.

        Raises:
            GeneratorStopped: the server does not answer, refuses a request, or answers by other weights.
        """
        before = state or [[] for _ in range(len(ids))]
        if state is not None and keep is not None:
            before = [state[row] for row in keep.tolist()]
        counts = lengths.tolist()
        prompts = [
            old + row[:count]
            for old, row, count in zip(before, ids.tolist(), counts, strict=True)
            for _ in range(copies)
        ]
        how = Sampling(tuple(stop), 0.0 if deterministic else self.temperature * temperature, top_k, top_p)
        longest = [max_new] * len(prompts) if limits is None else limits.clamp(max=max_new).tolist()
        first = torch.randint(LARGEST_SEED, (len(prompts),)) if seeds is None else seeds % LARGEST_SEED
        replies = self._ask(prompts, longest, first.tolist(), copies, how)
        tokens = [torch.tensor(reply, dtype=torch.long) for reply, _ in replies]
        log_probs = [torch.tensor(chances) for _, chances in replies]
        return (
            pad_sequence(tokens, batch_first=True, padding_value=stop[0]).to(ids.device),
            pad_sequence(log_probs, batch_first=True).to(ids.device),
            torch.tensor([len(reply) for reply, _ in replies], device=ids.device),
            [prompt + reply[:-1] for prompt, (reply, _) in zip(prompts, replies, strict=True)] if resume else None,
        )

    def _ask(
        self, prompts: list[list[int]], limits: list[int], seeds: list[int], copies: int, how: Sampling
    ) -> list[tuple[list[int], list[float]]]:
        """Replies to all prompts, in order. Adjacent copies with the same limit are one request."""
        requests = []
        for _, adjacent in groupby(range(len(prompts)), key=lambda row: (row // copies, limits[row])):
            rows = list(adjacent)
            if limits[rows[0]] > 0:
                requests.append(rows)
        replies: list[tuple[list[int], list[float]]] = [([], [])] * len(prompts)

        def ask(rows: list[int]) -> list[tuple[list[int], list[float]]]:
            row = rows[0]
            return self._complete(prompts[row], limits[row], seeds[row], len(rows), how)

        with ThreadPoolExecutor(self.server.concurrency) as pool:
            asking = [pool.submit(ask, rows) for rows in requests]
            try:
                for rows, answers in zip(requests, asking, strict=True):
                    for row, reply in zip(rows, answers.result(), strict=True):
                        replies[row] = reply
            finally:
                for answers in asking:  # after an error, requests that have not begun are not sent
                    answers.cancel()
        return replies

    def _complete(
        self, prompt: list[int], limit: int, seed: int, copies: int, how: Sampling
    ) -> list[tuple[list[int], list[float]]]:
        assert self._served is not None, "follow comes first"
        n = 1 if how.temperature == 0 else copies  # vLLM refuses copies of a greedy reply, which are equal
        answer = self.server.post("/completions", how.body(self._served, prompt, limit, n, seed))
        replies = replies_in(answer, self._served, prompt, limit, n, how.stop, self.vocabulary)
        return replies * (copies // n)
