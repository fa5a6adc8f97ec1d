"""What objectives may ask of a network. Networks come in from the yaml by `class_path`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_nlf.checkpoint_io import SafeCheckpointIO


class Network(nn.Module):
    """A network that can start from another run's: `weights` is the path of a checkpoint of ours."""

    role = ""  # the name it has in a module, and so the prefix of its keys in a checkpoint

    def load_weights(self, weights: str | None) -> None:
        """Take over the parameters of the network with the same role in the checkpoint `weights`.

        Raises:
            ValueError: no such file, a file that holds more than tensors, or a network of another shape.
        """
        if weights is None:
            return
        if not Path(weights).is_file():
            raise ValueError(f"weights: there is no file {weights}")
        state = SafeCheckpointIO().load_checkpoint(weights).get("state_dict", {})
        prefix = f"{self.role}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        try:
            self.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(
                f"weights: the {self.role} in {weights} has another shape than this one: {error}"
            ) from None


class Policy(Network):
    role = "policy"

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Distribution:
        """obs (B, T, *obs) → a distribution of batch shape (B, T); (N,) over the True steps of `where` (B, T)."""
        raise NotImplementedError

    def step(self, obs: Tensor, state: Any = None) -> tuple[Distribution, Any]:
        """One step of control: obs (B, *obs) → a distribution of batch shape (B,), and the recurrent state."""
        return self(obs), None

    def read(self, ids: Tensor, lengths: Tensor, state: Any = None) -> tuple[Distribution, Any]:
        """Text: new ids (B, L), right-padded with lengths (B,) → the next token's distribution (B,), and the state."""
        raise NotImplementedError

    def keep(self, running: Tensor, following: Any, state: Any) -> Any:
        """The state after `read`: `following` for the rows that are `running` (B,), `state` for the finished ones."""
        raise NotImplementedError


class Value(Network):
    role = "value"

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """obs (B, T, *obs) → values (B, T); (N,) over the True steps of `where` (B, T)."""
        raise NotImplementedError


class QValue(Network):
    role = "q"

    def forward(self, obs: Tensor, actions: Tensor, where: Tensor | None = None) -> Tensor:
        """obs (B, T, *obs), actions (B, T, *act) → values (B, T); (N,) over the True steps of `where` (B, T)."""
        raise NotImplementedError
