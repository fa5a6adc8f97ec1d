"""Base classes of networks: the interface that objectives need from policy, value, Q and reward networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributions import Distribution

from lightning_nlf.checkpoint_io import SafeCheckpointIO
from lightning_nlf.language.additions import ADDITION
from lightning_nlf.language.reader import Reader
from lightning_nlf.networks.bases import Base, bases_in


class Network(nn.Module):
    """Base class of all networks. A network can start from `weights`, such as the path of one of our checkpoints."""

    role = ""  # name of the network in a module, which is also the prefix of its keys in a checkpoint
    vocabulary: int | None = None  # number of token ids; None if the network does not read tokens
    context: int | None = None  # maximum number of tokens that the network reads at a time; None: no limit
    unread = 1  # tokens at the end of a row that the network never has to read
    sharded = False  # whether each rank has only a part of the weights
    base: Base | None = None  # the base model of a LoRA adapter, if checkpoints name this model instead of storing it
    tokenizer_digest: str | None = None  # digest of the tokenizer that the weights were trained with, if recorded

    @classmethod
    def sketch(cls, **arguments: Any) -> Self:
        """Build the network without weights if `weights` is a folder in the Hugging Face layout.

        A network without weights gives its sizes before the weights are read. It is on the device `meta`, and cannot be
        run. If `weights` is anything else, the network is built as usual.

        Args: arguments: the arguments of `__init__`.

        Raises:
            ValueError: see `__init__`, except for errors in the weights themselves.
        """
        return cls(**arguments)

    @staticmethod
    def sized(**sizes: int) -> None:
        """Check the sizes of a network.

        Raises ValueError: a size is 0 because neither the yaml nor the data gives it.
        """
        if unknown := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{unknown[0]}: the data does not give it; set it to a whole number of at least 1")

    def load_weights(self, weights: str | None) -> None:
        """Load the parameters of the network with the same role from the checkpoint `weights`.

        Raises:
            ValueError: the file does not exist or contains more than tensors, or has no network of this role and shape.
        """
        if weights is None:
            return
        checkpoint = checkpoint_at(weights)
        self.check_origin(checkpoint.get("hyper_parameters") or {}, weights)
        bases = bases_in(checkpoint)
        base = bases.get(self.role)
        if base is not None:
            self.stand_on(base, weights)
        elif bases and not under(self.role, checkpoint.get("state_dict", {})):
            Network.stand_on(self, next(iter(bases.values())), weights)  # the body would come from another network
        tensors = self.own_weights(checkpoint.get("state_dict", {}))
        if base is not None:
            tensors = self.base_weights() | tensors
        if not tensors:
            raise ValueError(f"weights: {weights} has no {self.role}; use a checkpoint that has one")
        faults = misfits(self.state_dict(), tensors)
        if faults:
            rest = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
            raise ValueError(
                f"weights: the {self.role} in {weights} does not fit this one: {faults[0]}{rest}; use the same shape"
            )
        self.load_state_dict(tensors)
        self.tokenizer_digest = checkpoint.get("tokenizer_digest")

    def stand_on(self, base: Base, weights: str) -> None:
        """Set the base model of a LoRA adapter, because the checkpoint `weights` contains only the adapter.

        Raises:
            ValueError: this network has no LoRA adapter; the base model is missing or has changed.
        """
        raise ValueError(
            f"weights: {weights} has only a LoRA adapter of {base.name}. Start the {self.role} from the folder "
            "`huggingface` that the run exported, or set the `lora` that the adapter was trained with"
        )

    def base_weights(self) -> dict[str, Tensor]:
        """Frozen weights of the base model, if the network has one. Checkpoints leave these weights out."""
        if self.base is None:
            return {}
        frozen = {name for name, x in self.named_parameters(remove_duplicate=False) if not x.requires_grad}
        return {name: x for name, x in self.state_dict().items() if name in frozen and ADDITION not in name}

    def check_origin(self, networks: Mapping[str, Any], weights: str) -> None:
        """Check settings that the tensors do not show.

        `networks` are the arguments that the checkpoint `weights` records.

        Raises:
            ValueError: the weights of the checkpoint would have a different meaning in this network.
        """

    @property
    def longest(self) -> int | None:
        """Maximum row length in tokens. None without a limit."""
        return None if self.context is None else self.context + self.unread

    def check_length(self, tokens: int | None) -> None:
        """Check that the longest row of the data can be read. `tokens` is the length of this row, or None if unknown.

        Raises:
            ValueError: the row is longer than the context.
        """
        if tokens is not None and self.longest is not None and tokens > self.longest:
            raise ValueError(
                f"context: a row of {tokens} tokens (prompt and reply, up to max_new) is longer than the {self.role}'s "
                f"context of {self.context}; shorten it, or set a larger shape.context. To find such rows, set "
                f"`context: {self.context}` in the data"
            )

    def check_tokenizer(self, digest: str | None, vocabulary: int | None) -> None:
        """Check that token ids mean the same in the network and in the data. Each argument is None if unknown.

        Raises:
            ValueError: the weights were trained with a different tokenizer, or the network has too few token ids.
        """
        if digest is not None and self.tokenizer_digest is not None and digest != self.tokenizer_digest:
            raise ValueError(
                f"tokenizer: the {self.role} was trained with a different tokenizer ({self.tokenizer_digest[:12]}…) "
                f"from the data or another network ({digest[:12]}…); use one tokenizer, or start from other weights"
            )
        if vocabulary is not None and self.vocabulary is not None and vocabulary > self.vocabulary:
            raise ValueError(
                f"vocabulary: the {self.role} has {self.vocabulary} token ids, but the data has {vocabulary}; "
                "set at least as many"
            )

    def own_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Select the weights of this network from the weights of a whole module, by the network's role."""
        return under(self.role, state)

    def shard(self, mesh: DeviceMesh) -> None:
        """Divide the parameters among the ranks of `mesh` (FSDP2), so that each rank keeps a part of every parameter.

        Raises:
            ValueError: the network does not support this.
        """
        raise ValueError(
            f"trainer.strategy: ModelParallelStrategy cannot divide a {type(self).__name__}, only transformers of our "
            "own decoder; use ddp"
        )

    @property
    def kept_per_token(self) -> int:
        """Approximate count of numbers per token that a forward pass keeps for the backward pass; 0 if unknown."""
        return 0

    def arguments(self) -> dict[str, Any]:
        """Arguments of `__init__` that come from `weights`.

        Checkpoints record these arguments, so that the file `weights` is not needed again.
        """
        return {}


def checkpoint_at(weights: str) -> dict[str, Any]:
    """Load the checkpoint `weights`.  Raises ValueError: the file does not exist, or contains more than tensors."""
    if not Path(weights).is_file():
        raise ValueError(f"weights: there is no file {weights}; check the path")
    return SafeCheckpointIO().load_checkpoint(weights)


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of `state` whose names start with `prefix` and a dot. The new names are without this prefix."""
    return {key.removeprefix(f"{prefix}."): x for key, x in state.items() if key.startswith(f"{prefix}.")}


def misfits(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Reasons why `weights` cannot be loaded into `parameters`, one per tensor."""
    missing = [f"{name} is missing in the file" for name in parameters if name not in weights]
    unknown = [f"{name} is not in this network" for name in weights if name not in parameters]
    shapes = {name: (tuple(weights[name].shape), tuple(x.shape)) for name, x in parameters.items() if name in weights}
    unequal = [f"{name} is {a} in the file, but {b} here" for name, (a, b) in shapes.items() if a != b]
    return unequal + missing + unknown


class Policy(Network, Reader):
    """Policy network: observations → a distribution over actions, at each step."""

    role = "policy"
    shared = False  # whether the head of a value or Q network uses the policy's features
    temperature = 1.0  # of a language policy: its scores are divided by it, in sampling and in learning
    origin: Path | None = None  # a model folder that contains all weights of the policy, if any

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Distribution:
        """obs (B, T, *obs) → distribution of batch shape (B, T), or (N,) at the N True steps of `where` (B, T)."""
        return self.distribution(self.features(obs, where))

    @property
    def width(self) -> int:
        """Number d of features. Raises ValueError: the policy does not define it."""
        raise ValueError(f"value.width: {type(self).__name__} does not give the width of its features; set it")

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """Features for a head on a shared trunk: (B, T, d), or (N, d) at the True steps of `where`."""
        raise NotImplementedError

    def distribution(self, features: Tensor) -> Distribution:
        """features (…, d) → distribution of batch shape (…)."""
        raise NotImplementedError

    def frozen(self) -> Policy:
        """A frozen copy of the policy as it is now, for comparison."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def read_again(self, folder: Path) -> None:
        """Load all weights again from the model folder `origin`."""
        self.load_weights(str(folder))

    def step(self, obs: Tensor, state: Any = None) -> tuple[Distribution, Any]:
        """One step of control: obs (B, *obs) → distribution of batch shape (B,), and the recurrent state."""
        return self(obs), None


class Value(Network):
    """Value network V(s).

    A head on the policy's trunk sets `on_policy`, and reads the policy's features instead of observations.
    """

    role = "value"
    on_policy = False

    def join(self, policy: Policy) -> None:
        """Set the policy whose features a head reads. Called before any other use of the head."""

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """obs (B, T, *obs) → values (B, T), or (N,) at the True steps of `where` (B, T)."""
        raise NotImplementedError


class QValue(Network):
    """Q network Q(s, a). A head on the policy's trunk sets `on_policy`, and reads features instead of observations."""

    role = "q"
    on_policy = False

    def forward(self, obs: Tensor, actions: Tensor, where: Tensor | None = None) -> Tensor:
        """obs (B, T, *obs), actions (B, T, *act) → values (B, T), or (N,) at the True steps of `where` (B, T)."""
        raise NotImplementedError


class Reward(Network):
    """Reward network: scores a reply after its last token, or each step of a reply after the last token of the step."""

    role = "reward"
    unread = 0

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """obs (B, T, *obs) → rewards (B, T), or (N,) at the True steps of `where` (B, T)."""
        raise NotImplementedError
