"""One-line plan of a language fit, printed before it starts: rows, tokens, optimizer steps and estimated time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
import torch

from lightning_nlf.batch import Sampling, Workload
from lightning_nlf.callbacks.protocols import rehearses
from lightning_nlf.data_source import data_source
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import Network

ROWS, WIDTH, NEW = 16, 8, 4  # sizes of the timing trial: rows, tokens read per row, and tokens sampled per row


def plan(name: str, trainer: L.Trainer, module: L.LightningModule) -> str | None:
    """The plan of a fit as one line. None for a fast_dev_run, or if the DataModule gives no workload.

    The estimated time is left out if it would be a guess. This is so on devices other than a CPU, and if `max_epochs`
    does not end the fit.

    Args:
        name: Name of the run.
    """
    work, epochs, steps = data_source(trainer).workload, trainer.max_epochs, steps_in_all(trainer)
    if work is None or rehearses(trainer):
        return None
    new = work.collection.new
    about, sampled = ("about ", f", up to {new:,} tokens sampled") if new else ("", "")
    parts = [f"{about}{work.rows:,} rows and {work.tokens:,} tokens per iteration{sampled}"]
    if steps is not None and epochs is not None and epochs > 0 and trainer.max_steps < 0:
        parts.append(f"{counted(steps, 'optimizer step')} in {counted(epochs, 'iteration')}")
        finished, every = trainer.current_epoch, trainer.check_val_every_n_epoch or 1
        evaluations = (epochs // every - finished // every) + (finished == 0)  # an extra evaluation before training
        if trainer.limit_train_batches == 1 and (costs := Costs.measured(module)):
            from lightning_nlf.callbacks.progress_display import clock

            seconds = costs.seconds(work, epochs - finished, evaluations if trainer.limit_val_batches else 0)
            parts.append(f"about {clock(seconds / trainer.world_size)}")
    return f"{name}: {' · '.join(parts)}"


@dataclass(frozen=True)
class Costs:
    """Seconds per token on this machine.

    Args:
        read: Seconds to read a token (forward pass).
        sample: Seconds to sample a token.
        training: Cost of training on a token, in forward passes of the first network.
    """

    read: float
    sample: float
    training: float

    def seconds(self, work: Workload, iterations: int, evaluations: int) -> float:
        """Estimated seconds of a fit, without the time for checkpoints, judges and a reference policy."""
        training = work.tokens * work.passes * self.training * self.read
        return iterations * (training + self._of(work.collection)) + evaluations * self._of(work.evaluation)

    def _of(self, sampling: Sampling) -> float:
        return sampling.prompts * self.read + sampling.new * self.sample

    @classmethod
    def measured(cls, module: L.LightningModule) -> Costs | None:
        """Measure the costs by a short trial of the first network that reads tokens.

        Costs of other networks are scaled by size.

        Returns None without such a network, or if its weights are divided among ranks. Also returns None on a device
        other than a CPU, where a short trial says nothing. The trial does not change the random state of the training.
        """
        networks = [child for child in module.children() if isinstance(child, Network) and child.vocabulary]
        if not networks or module.device.type != "cpu" or networks[0].sharded:
            return None
        training = sum(_forward_passes(network) * _size(network) for network in networks) / _size(networks[0])
        modes = {part: part.training for part in module.modules()}
        module.eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            costs = cls(_seconds_to_read(networks[0]), _seconds_to_sample(module), training)
        for part, mode in modes.items():
            part.training = mode
        return costs


def _size(network: Network) -> int:
    return sum(p.numel() for p in network.parameters())


def _forward_passes(network: Network) -> float:
    """Cost of a forward and a backward pass, in forward passes. Frozen weights need no gradient and cost less."""
    return 2 + sum(p.numel() for p in network.parameters() if p.requires_grad) / _size(network)


def _seconds_to_read(network: Network) -> float:
    width = min(WIDTH, network.context or WIDTH)
    ids = torch.arange(ROWS * width).view(ROWS, width) * 7 % (network.vocabulary or 1)  # rows without a common prefix
    ids = ids.to(next(network.parameters()).device)

    def read() -> None:
        output = network(ids)
        if isinstance(output, torch.distributions.Distribution):
            output.log_prob(ids)

    return _seconds(read) / ids.numel()


def _seconds_to_sample(module: L.LightningModule) -> float:
    """Seconds to sample a token; 0 for a module that does not reply."""
    if not isinstance(module, PolicyModule):
        return 0.0
    new = max(1, min(NEW, (module.policy.context or NEW) - 1))
    never = (-1,)  # no token id, so no reply ends early
    prompt, lengths = torch.zeros(ROWS, 1, dtype=torch.long), torch.ones(ROWS, dtype=torch.long)
    seconds = _seconds(lambda: module.reply(prompt, lengths, stop=never, max_new=new, deterministic=True))
    return seconds / (ROWS * new)


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of the second call, because the first call includes warm-up."""
    work()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 step`, `2 steps`."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def steps_in_all(trainer: L.Trainer) -> int | None:
    """Number of optimizer steps of the whole fit; None if it has no limit."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps > 0 else None
