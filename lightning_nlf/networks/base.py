"""What objectives may ask of a network. Networks come in from the yaml by `class_path`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_nlf.checkpoint_io import SafeCheckpointIO
from lightning_nlf.language.additions import ADDITION
from lightning_nlf.language.reader import Reader
from lightning_nlf.networks.bases import Base, bases_in


class Network(nn.Module):
    """A network that can start from another run's: `weights` is the path of a checkpoint of ours."""

    role = ""  # the name it has in a module, and so the prefix of its keys in a checkpoint
    vocabulary: int | None = None  # token ids that it knows, where it reads any
    context: int | None = None  # tokens of a row that it can read, where there is a limit
    unread = 1  # tokens at the end of a row that nobody asks it about
    base: Base | None = None  # what LoRA's additions are trained on, where a checkpoint need only name it
    tokenizer_digest: str | None = None  # whose ids its weights have learned, where a checkpoint said so

    @classmethod
    def sketch(cls, **arguments: Any) -> Self:
        """The network with its sizes and, where `weights` are a folder in Hugging Face layout, without its numbers.

        For what can be known before these are read. It is on the device `meta` then, and cannot be run.

        Args: arguments: of `__init__`.

        Raises:
            ValueError: as of `__init__`, but for numbers that are wrong.
        """
        return cls(**arguments)

    def load_weights(self, weights: str | None) -> None:
        """Take over the parameters of the network with the same role in the checkpoint `weights`.

        Raises:
            ValueError: no such file, a file that holds more than tensors, or no network of this role and shape.
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
            Network.stand_on(self, next(iter(bases.values())), weights)  # which would begin with another's body
        saved = self.own_weights(checkpoint.get("state_dict", {}))
        if base is not None:
            saved = self.base_weights() | saved
        if not saved:
            raise ValueError(f"weights: there is no {self.role} in {weights}")
        faults = misfits(self.state_dict(), saved)
        if faults:
            more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
            raise ValueError(
                f"weights: the {self.role} in {weights} has another shape than this one: {faults[0]}{more}"
            )
        self.load_state_dict(saved)
        self.tokenizer_digest = checkpoint.get("tokenizer_digest")

    def stand_on(self, base: Base, weights: str) -> None:
        """Take over the base of the checkpoint `weights`, which holds additions to it alone.

        Raises:
            ValueError: this network has no additions; the base is not there, or another.
        """
        raise ValueError(
            f"weights: {weights} holds LoRA's additions to {base.name} alone: start the {self.role} from the folder "
            "that the run exported (huggingface), or give a network of the same role the same `lora`"
        )

    def base_weights(self) -> dict[str, Tensor]:
        """What does not train and is no addition, where there is a base: a checkpoint leaves it out."""
        if self.base is None:
            return {}
        frozen = {name for name, x in self.named_parameters(remove_duplicate=False) if not x.requires_grad}
        return {name: x for name, x in self.state_dict().items() if name in frozen and ADDITION not in name}

    def check_origin(self, networks: Mapping[str, Any], weights: str) -> None:
        """Whether the checkpoint `weights`, built from `networks`, says something that its tensors do not show.

        Raises:
            ValueError: it is of a network whose weights mean something else here.
        """

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row that it can be asked about; None without a limit."""
        return None if self.context is None else self.context + self.unread

    def check_length(self, tokens: int | None) -> None:
        """Whether the longest row of the data can be read; None where the data does not say.

        Raises:
            ValueError: it is longer than the context.
        """
        if tokens is not None and self.longest is not None and tokens > self.longest:
            raise ValueError(
                f"context: a row of {tokens} tokens, prompt and reply (max_new) together, is longer than the context "
                f"of {self.context} that the {self.role} has: shorten it, or give a larger one (shape.context); "
                f"`context: {self.context}` of the data says where it stands"
            )

    def check_tokenizer(self, digest: str | None, vocabulary: int | None) -> None:
        """Whether ids mean the same here as in the data; each is None where the data does not say.

        Raises:
            ValueError: the weights have learned the ids of another tokenizer, or there are more ids than it knows.
        """
        if digest is not None and self.tokenizer_digest is not None and digest != self.tokenizer_digest:
            raise ValueError(
                f"tokenizer: the {self.role} has learned the ids of another ({self.tokenizer_digest[:12]}…) than the "
                f"data or another network has ({digest[:12]}…): use one tokenizer, or start from other weights"
            )
        if vocabulary is not None and self.vocabulary is not None and vocabulary > self.vocabulary:
            raise ValueError(
                f"vocabulary: the {self.role} knows {self.vocabulary} token ids and the data has {vocabulary}: "
                "give it as many or more"
            )

    def own_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this network takes of a module's weights: those under its role."""
        return under(self.role, state)

    @property
    def kept_per_token(self) -> int:
        """Numbers that a forward pass keeps of a token for the way back, about; 0 where that is not known."""
        return 0

    def arguments(self) -> dict[str, Any]:
        """Those of `__init__` that `weights` has decided: a checkpoint says them, and needs `weights` no more."""
        return {}


def checkpoint_at(weights: str) -> dict[str, Any]:
    """Raises ValueError: there is no such file, or it holds more than tensors."""
    if not Path(weights).is_file():
        raise ValueError(f"weights: there is no file {weights}")
    return SafeCheckpointIO().load_checkpoint(weights)


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix` and a dot, without these."""
    return {key.removeprefix(f"{prefix}."): x for key, x in state.items() if key.startswith(f"{prefix}.")}


def misfits(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> list[str]:
    """Why `saved` cannot be loaded in the place of `own`, one reason a tensor."""
    missing = [f"{name} is missing there" for name in own if name not in saved]
    unknown = [f"{name} is not known here" for name in saved if name not in own]
    shapes = {name: (tuple(saved[name].shape), tuple(x.shape)) for name, x in own.items() if name in saved}
    other = [f"{name} is {there} there and {here} here" for name, (there, here) in shapes.items() if there != here]
    return other + missing + unknown


class Policy(Network, Reader):
    role = "policy"
    shared = False  # whether a head of another network reads its features
    origin: Path | None = None  # the model folder that its numbers came from, where one has them all

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Distribution:
        """obs (B, T, *obs) → a distribution of batch shape (B, T); (N,) over the True steps of `where` (B, T)."""
        return self.distribution(self.features(obs, where))

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """What a head on a shared trunk sees: (B, T, d), or (N, d) over the True steps of `where`."""
        raise NotImplementedError

    def distribution(self, features: Tensor) -> Distribution:
        """features (…, d) → a distribution of batch shape (…)."""
        raise NotImplementedError

    def frozen(self) -> Policy:
        """This policy as it is now, for comparison: it does not follow, and is never trained."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def read_again(self, folder: Path) -> None:
        """Take over all numbers of the model folder that is its `origin`."""
        self.load_weights(str(folder))

    def step(self, obs: Tensor, state: Any = None) -> tuple[Distribution, Any]:
        """One step of control: obs (B, *obs) → a distribution of batch shape (B,), and the recurrent state."""
        return self(obs), None


class Value(Network):
    """V(s). One that is a head on the policy's trunk says so by `on_policy`, and is given the policy's features."""

    role = "value"
    on_policy = False

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """obs (B, T, *obs) → values (B, T); (N,) over the True steps of `where` (B, T)."""
        raise NotImplementedError


class QValue(Network):
    """Q(s, a). A head on the policy's trunk says so by `on_policy`, and is given its features and actions (…)."""

    role = "q"
    on_policy = False

    def forward(self, obs: Tensor, actions: Tensor, where: Tensor | None = None) -> Tensor:
        """obs (B, T, *obs), actions (B, T, *act) → values (B, T); (N,) over the True steps of `where` (B, T)."""
        raise NotImplementedError


class Reward(Network):
    """What a reply, or a step of it, is worth: read behind its last token."""

    role = "reward"
    unread = 0

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """obs (B, T, *obs) → rewards (B, T); (N,) over the True steps of `where` (B, T)."""
        raise NotImplementedError
