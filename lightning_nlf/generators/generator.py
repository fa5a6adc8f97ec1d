"""Interface of a generation server that samples the replies of the policy in training."""

from __future__ import annotations

from typing import Protocol

from lightning_nlf.batch import Replier
from lightning_nlf.generators.completions import Served
from lightning_nlf.networks import Policy


class Generator(Replier, Protocol):
    """Samples replies in another process, with the policy's weights."""

    def follow(self, policy: Policy) -> None:
        """Give the server the policy's weights, if they have changed since the last call.

        Raises:
            GeneratorStopped: the server does not answer, or refuses the weights.
            ValueError: the policy or the server's settings do not allow it.
        """
        ...


class WeightSync(Protocol):
    """Sends the weights of a policy to a server."""

    def push(self, policy: Policy) -> Served:
        """Send the weights, and return what every answer sampled by these weights contains.

        Raises: see `Generator.follow`.
        """
        ...

    def close(self) -> None:
        """Remove from the server what `push` has left there. Does nothing if the server no longer answers."""
        ...
