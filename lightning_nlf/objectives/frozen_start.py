"""Frozen copy of the start policy. If a model folder holds the weights, they are read from there when needed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from lightning_nlf.networks import Policy
from lightning_nlf.objectives.reference_cache import digest


class StartIsGone(ValueError):
    """The folder that a policy started from is missing or holds other weights."""


class FrozenStart:
    """A frozen copy of the policy at the time of construction, for later comparison.

    No copy is kept if a folder in the Hugging Face layout holds the same weights (`Policy.origin`). In that case,
    `reading` reads the folder, and compares a digest to check that the weights have not changed. Any other policy is
    copied by `Policy.frozen`.
    """

    def __init__(self, policy: Policy) -> None:
        self._folder: Path | None = None
        self._digest: str | None = None
        if policy.origin is None or not self._is_in(policy, policy.origin):
            self.network = policy.frozen()

    def _is_in(self, policy: Policy, folder: Path) -> bool:
        """Whether the folder holds all weights of the policy. If so, the network is kept without weights."""
        self._folder, self._digest = folder, digest(policy)
        self._shapes = [x.shape for x in policy.parameters()]
        empty = {id(x): nn.Parameter(x.new_empty(0), requires_grad=False) for x in policy.parameters()}
        self.network = copy.deepcopy(policy, empty).eval()
        try:
            with self.reading():
                return True
        except StartIsGone:
            self._folder = self._digest = None
            return False

    @property
    def digest(self) -> str:
        """SHA-256 of the weights (`reference_cache.digest`). Empty if the policy was only a sketch without weights."""
        if self._digest is None:
            numbers = self.network.state_dict().values()
            self._digest = "" if any(x.is_meta for x in numbers) else digest(self.network)
        return self._digest

    @contextmanager
    def reading(self, device: torch.device | None = None, keep: bool = False) -> Iterator[Policy]:
        """Context manager that gives the network with its weights, on `device`.

        Drops the weights on exit, unless `keep` is set.

        Raises:
            StartIsGone: the folder is missing or holds other weights.
        """
        if self._folder is not None and not self._is_read:
            self._read(self._folder)
        try:
            yield self.network if device is None else self.network.to(device)
        finally:
            if self._folder is not None and not keep:
                self._empty()

    @property
    def _is_read(self) -> bool:
        return [x.shape for x in self.network.parameters()] == self._shapes

    def _empty(self) -> None:
        for x in self.network.parameters():
            x.data = torch.empty(0)

    def _read(self, folder: Path) -> None:
        # One large block is memory-mapped, and returns to the system when it is freed (`cli.memory`).
        sizes = [shape.numel() for shape in self._shapes]
        parts = torch.empty(sum(sizes)).split(sizes)
        try:
            for x, part, shape in zip(self.network.parameters(), parts, self._shapes, strict=True):
                x.data = part.view(shape)
            try:
                self.network.read_again(folder)
                state = "" if digest(self.network) == self._digest else "now holds other weights"
            except (ValueError, OSError):
                state = "now holds other weights" if folder.is_dir() else "no longer exists"
            if state:
                raise StartIsGone(
                    f"reference: the run began with the model in {folder}, which {state}; restore that model there"
                )
        except BaseException:  # otherwise partly read weights would count as complete
            self._empty()
            raise
