"""The frozen start of a policy; its numbers are in memory only while they are read, where a folder has them too."""

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
    """The folder that a policy started from is not there any more, or holds other weights."""


class FrozenStart:
    """The policy as it is now, for comparison.

    Where the policy is what a folder in Hugging Face layout holds (`Policy.origin`), no copy is kept: `reading` reads
    the folder, and the digest says whether the weights are still those of the start. Any other policy is copied, as by
    `Policy.frozen`.
    """

    def __init__(self, policy: Policy) -> None:
        self._folder: Path | None = None
        self._digest: str | None = None
        if policy.origin is None or not self._is_in(policy, policy.origin):
            self.network = policy.frozen()

    def _is_in(self, policy: Policy, folder: Path) -> bool:
        """Whether the folder has all numbers of the policy; then the network is without its own."""
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
        """SHA-256 of its numbers (`reference_cache.digest`); empty where the policy was built without any."""
        if self._digest is None:
            numbers = self.network.state_dict().values()
            self._digest = "" if any(x.is_meta for x in numbers) else digest(self.network)
        return self._digest

    @contextmanager
    def reading(self, device: torch.device | None = None, keep: bool = False) -> Iterator[Policy]:
        """The network with its numbers, on `device`. Afterwards they are gone, unless it is to `keep` them.

        Raises:
            StartIsGone: the folder is not there any more, or holds other weights.
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
        # One block: as large as this it is mapped, and goes back to the system when it is freed (`cli.memory`).
        sizes = [shape.numel() for shape in self._shapes]
        parts = torch.empty(sum(sizes)).split(sizes)
        try:
            for x, part, shape in zip(self.network.parameters(), parts, self._shapes, strict=True):
                x.data = part.view(shape)
            try:
                self.network.read_again(folder)
                state = "" if digest(self.network) == self._digest else "holds other weights now"
            except (ValueError, OSError):
                state = "holds other weights now" if folder.is_dir() else "is not there any more"
            if state:
                raise StartIsGone(
                    f"reference: it is the model that the run began with, {folder}, and that {state}: put that model "
                    "back there"
                )
        except BaseException:  # half of it would count as read
            self._empty()
            raise
