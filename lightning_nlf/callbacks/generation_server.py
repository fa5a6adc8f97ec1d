"""Replies of a language policy from a generation server with vLLM's API, with the policy's current weights."""

from __future__ import annotations

from typing import Literal

import lightning as L

from lightning_nlf.generators import LoRASwap, Server, VLLMReplier, WeightTransfer
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import Count, Positive, Size


class GenerationServer(L.Callback):
    """A server with vLLM's completions API samples all replies, in training and in evaluations.

    Before the first reply after a change of the policy's weights, the server gets the new weights. An answer by other
    weights ends the run, as does a server that does not answer. The run can be resumed with `--ckpt_path last`.

    The trainer computes the log-probabilities of the replies again, and importance ratios of PPO start from these. The
    loss of the policy gradient is multiplied by min(π_trainer / π_server, `ratio_cap`), see `truncated_ratio`. Other
    losses are not corrected. `train/mismatch_kl` is KL(server ‖ trainer) a token, and `train/mismatch_capped` the share
    of capped weights. With `temperature`, `top_k` or `top_p` in the data, both include the effect of these settings.

    Args:
        url: address of the server, ending in `/v1`.
        sync: how the weights get to the server. `lora`: the adapter of a LoRA policy is loaded under a new name.
            `transfer`: vLLM's NCCL weight transfer overwrites all weights; this was not run on GPUs so far.
        model: name of the model on the server; only for `transfer`.
        adapters: folder for the adapters, which the server must see under the same path; by default a temporary folder,
            for a server of the same user on the same machine.
        ratio_cap: cap of the importance weights.
        key_variable, timeout, retries, concurrency: see `lightning_nlf.generators.Server`.
        address, port: where the server's processes meet the trainer; only for `transfer`.

    Raises:
        ValueError: the url is invalid, or `transfer` has no `model`; in `setup`: the module has no language policy, or
            `transfer` is used with several processes.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000/v1",
        sync: Literal["lora", "transfer"] = "lora",
        model: str | None = None,
        adapters: str | None = None,
        ratio_cap: Positive = 2.0,
        key_variable: str | None = None,
        timeout: Positive = 600.0,
        retries: Count = 5,
        concurrency: Size = 64,
        address: str = "127.0.0.1",
        port: Size = 51216,
    ) -> None:
        server = Server(url, key_variable, timeout, retries, concurrency)
        if sync == "transfer" and model is None:
            raise ValueError("model: sync: transfer needs the model's name on the server; set it")
        self.sync, self.ratio_cap = sync, ratio_cap
        transfer = sync == "transfer" and model is not None
        self.generator = VLLMReplier(
            server, WeightTransfer(server, str(model), address, port) if transfer else LoRASwap(server, adapters)
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the server reply in place of the policy."""
        if not isinstance(pl_module, PolicyModule) or pl_module.policy.vocabulary is None:
            raise ValueError("GenerationServer: it samples replies of a language policy; leave it out")
        if self.sync == "transfer" and trainer.world_size > 1:
            raise ValueError("sync: transfer works with one training process; use sync: lora")
        pl_module.generator, pl_module.ratio_cap = self.generator, self.ratio_cap

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the weights from the server."""
        self.generator.close()
        if isinstance(pl_module, PolicyModule):
            pl_module.generator = None
