"""What a fit of language is about to do, in one line: rows, tokens, optimizer steps, and about how long they take."""

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

ROWS, WIDTH, NEW = 16, 8, 4  # of the trial: rows, tokens that are read of each, and tokens that are sampled


def plan(name: str, trainer: L.Trainer, module: L.LightningModule) -> str | None:
    """The line; None of a rehearsal, and where the data does not say how much there is.

    No time where it would be a guess: on other devices than a CPU, and where something else than `max_epochs` ends it.

    Args: name: of the run.
    """
    work, epochs, steps = data_source(trainer).workload, trainer.max_epochs, steps_in_all(trainer)
    if work is None or rehearses(trainer):
        return None
    new = work.collection.new
    about, sampled = ("about ", f", up to {new:,} tokens sampled") if new else ("", "")
    parts = [f"{about}{work.rows:,} rows and {work.tokens:,} tokens an iteration{sampled}"]
    if steps is not None and epochs is not None and epochs > 0 and trainer.max_steps < 0:
        parts.append(f"{counted(steps, 'optimizer step')} in {counted(epochs, 'iteration')}")
        done, every = trainer.current_epoch, trainer.check_val_every_n_epoch or 1
        evaluations = (epochs // every - done // every) + (done == 0)  # before training, the start's replies
        if trainer.limit_train_batches == 1 and (costs := Costs.measured(module)):
            from lightning_nlf.callbacks.progress_display import clock

            seconds = costs.seconds(work, epochs - done, evaluations if trainer.limit_val_batches else 0)
            parts.append(f"about {clock(seconds / trainer.world_size)}")
    return f"{name}: {' · '.join(parts)}"


@dataclass(frozen=True)
class Costs:
    """Seconds that this machine takes for a token.

    Args:
        read: one that is read; sample: one that is sampled.
        training: what a token costs that is learned from, in forward passes of the first network.
    """

    read: float
    sample: float
    training: float

    def seconds(self, work: Workload, iterations: int, evaluations: int) -> float:
        """Of a fit; checkpoints, judges and a reference are not in it."""
        learned = work.tokens * work.passes * self.training * self.read
        return iterations * (learned + self._of(work.collection)) + evaluations * self._of(work.evaluation)

    def _of(self, sampling: Sampling) -> float:
        return sampling.prompts * self.read + sampling.new * self.sample

    @classmethod
    def measured(cls, module: L.LightningModule) -> Costs | None:
        """By a short trial of the first network that reads tokens; the cost of others goes by their sizes.

        None where there is no such network, and on other devices than a CPU, of which so small a trial says nothing.
        Nothing is drawn that a training draws.
        """
        networks = [each for each in module.children() if isinstance(each, Network) and each.vocabulary]
        if not networks or module.device.type != "cpu":
            return None
        training = sum(_forward_passes(network) * _size(network) for network in networks) / _size(networks[0])
        modes = {each: each.training for each in module.modules()}
        module.eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            costs = cls(_seconds_to_read(networks[0]), _seconds_to_sample(module), training)
        for each, mode in modes.items():
            each.training = mode
        return costs


def _size(network: Network) -> int:
    return sum(p.numel() for p in network.parameters())


def _forward_passes(network: Network) -> float:
    """What a forward and a backward pass cost together: weights that do not learn have no gradient."""
    return 2 + sum(p.numel() for p in network.parameters() if p.requires_grad) / _size(network)


def _seconds_to_read(network: Network) -> float:
    width = min(WIDTH, network.context or WIDTH)
    ids = torch.arange(ROWS * width).view(ROWS, width) * 7 % (network.vocabulary or 1)  # rows that share nothing
    ids = ids.to(next(network.parameters()).device)

    def read() -> None:
        output = network(ids)
        if isinstance(output, torch.distributions.Distribution):
            output.log_prob(ids)

    return _seconds(read) / ids.numel()


def _seconds_to_sample(module: L.LightningModule) -> float:
    """0 of a module that does not reply."""
    if not isinstance(module, PolicyModule):
        return 0.0
    new = max(1, min(NEW, (module.policy.context or NEW) - 1))
    never = (-1,)  # ends a reply
    prompt, lengths = torch.zeros(ROWS, 1, dtype=torch.long), torch.ones(ROWS, dtype=torch.long)
    seconds = _seconds(lambda: module.reply(prompt, lengths, stop=never, max_new=new, deterministic=True))
    return seconds / (ROWS * new)


def _seconds(work: Callable[[], object]) -> float:
    """Of the second time: the first has more to do."""
    work()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def counted(count: int, what: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def steps_in_all(trainer: L.Trainer) -> int | None:
    """Optimizer steps of the whole fit, None where it has no end."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps > 0 else None
