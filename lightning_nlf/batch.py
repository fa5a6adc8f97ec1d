"""The `Batch` that environments and objectives exchange, and the protocols of models, experts and scorers.

Imports torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B rows of T steps, right-padded. Batches of control and of text differ only in the trailing dimensions.

    A row is one episode, a fragment of one episode, or one dialogue. No episode boundary lies inside a row.
    All fields except the first four are optional.
    """

    obs: Tensor  # (B, T, *obs)  state, or token ids
    actions: Tensor  # (B, T, *act)  as sampled, before the environment clips them; for text, the next token
    valid: Tensor  # (B, T) bool  the learner or an expert decided here; returns and γ count only these steps
    mask: Tensor  # (B, T) bool, ⊆ valid  the learner acted here and learns from this step
    log_probs: Tensor | None = None  # (B, T) under the behaviour policy, learner or expert
    rewards: Tensor | None = None  # (B, T)
    values: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)
    advantages: Tensor | None = None  # (B, T)
    ref_log_probs: Tensor | None = None  # (B, T)
    final_obs: Tensor | None = None  # (B, *obs)  the observation after the last step
    terminated: Tensor | None = None  # (B,) bool  ended by the environment; a truncated row adds V(final_obs)
    expert_actions: Tensor | None = None  # (B, T, *act)  what the expert did, or would have done
    expert_mask: Tensor | None = None  # (B, T) bool  True only means that `expert_actions` is known at this step
    expert_params: dict[str, Tensor] | None = None  # each (B, T, …): {"mean", "std"} or {"logits"}
    group: Tensor | None = None  # (B,) int  rows of one prompt share a group; a minibatch never splits a group
    rank: Tensor | None = None  # (B,) int  0 is best, equal ranks are a tie, −1 is unranked
    score: Tensor | None = None  # (B,)
    view: Batch | None = None  # the same actions in the same order after another prompt
    masks: dict[str, Tensor] = field(default_factory=dict)  # each (B, T) or (B,) bool: what a term averages over
    metrics: dict[str, Tensor] = field(default_factory=dict)  # each (B,): one logged number per episode; NaN if unknown
    extra: dict[str, Tensor] = field(default_factory=dict)  # each (B,) or (B, T, …): everything else
    # Number of True steps in each mask, averaged over the micro-batches and ranks of an optimizer step (`stamp_totals`)
    totals: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for field_name in ("extra", "masks", "metrics"):
            for name, x in getattr(self, field_name).items():
                if x.ndim > 1 and x.shape[:2] != self.mask.shape[:2]:
                    raise ValueError(f"{field_name}.{name}: shape {tuple(x.shape)} must be (B,) or (B, T, …)")

    def __len__(self) -> int:
        return len(self.mask)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `fn` to every tensor with rows. `totals` are kept as they are."""
        return _map(fn, self)

    def __getitem__(self, rows: Any) -> Batch:
        """Select rows, and cut the padding to the longest selected row. `totals` are dropped.

        `rows` is a slice, an index tensor (n,) or a boolean tensor (B,).
        """
        chosen = replace(self.map(lambda x: x[rows]), totals={})
        return chosen.trim()

    def trim(self) -> Batch:
        """Remove the columns on the right in which no row has a valid step or an expert step."""
        used = self.valid if self.expert_mask is None else self.valid | self.expert_mask
        columns = used.any(0).nonzero()
        length = int(columns[-1]) + 1 if len(columns) else 1
        width = self.mask.shape[1]
        view = None if self.view is None else self.view.trim()
        if length == width:
            return self if view is self.view else replace(self, view=view)
        cut = {
            name: _map(lambda x: x[:, :length], value)
            for name in _WITH_ROWS
            if name not in _PER_ROW and (value := getattr(self, name)) is not None
        }
        dicts: dict[str, Any] = {
            name: {key: x if x.ndim == 1 else x[:, :length] for key, x in getattr(self, name).items()}
            for name in ("masks", "extra")
        }
        return replace(self, **cut, **dicts, view=view)

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Move every tensor, including `totals`. Lightning calls this to move a batch to the device."""
        totals = {name: total.to(*args, **kwargs) for name, total in self.totals.items()}
        return replace(self.map(lambda x: x.to(*args, **kwargs)), totals=totals)

    def with_masks(self, **masks: Tensor) -> Batch:
        """A copy with additional named masks, each (B, T) or (B,) bool."""
        return replace(self, masks=self.masks | masks)

    def with_extra(self, **tensors: Tensor) -> Batch:
        """A copy with additional tensors in `extra`, each (B,) or (B, T, …)."""
        return replace(self, extra=self.extra | tensors)

    def detach(self) -> Batch:
        return self.map(Tensor.detach)


class MissingField(ValueError):
    """The batch lacks a field that a term of the loss needs."""


@dataclass(frozen=True)
class Sampling:
    """Cost of sampling one reply: the number of prompt tokens, and the maximum number of sampled tokens."""

    prompts: int = 0
    new: int = 0

    def __add__(self, term: Sampling) -> Sampling:
        return Sampling(self.prompts + term.prompts, self.new + term.new)

    def __mul__(self, times: int) -> Sampling:
        return Sampling(self.prompts * times, self.new * times)


@dataclass(frozen=True)
class Workload:
    """Rows and tokens of one training iteration on text, over all ranks. Estimated if replies are sampled.

    Args:
        rows: number of rows in the training data of the iteration.
        tokens: number of tokens in these rows, including prompts.
        passes: number of passes over these rows.
        collection: number of tokens that one iteration reads and samples.
        evaluation: number of tokens that one validation reads and samples.
    """

    rows: int
    tokens: int
    passes: int = 1
    collection: Sampling = Sampling()
    evaluation: Sampling = Sampling()


class TeacherStopped(RuntimeError):
    """A judge, critic or user cannot continue, because it does not answer or its budget is spent.

    Earlier answers are kept.
    """


def required(x: Tensor | None, message: str) -> Tensor:
    """Return x, or raise MissingField with `message` if x is None."""
    if x is None:
        raise MissingField(message)
    return x


_WITH_ROWS = tuple(f.name for f in fields(Batch) if f.name != "totals")
_PER_ROW = {"final_obs", "terminated", "group", "rank", "score", "view", "masks", "metrics", "extra", "totals"}


def _map(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return {name: fn(x) for name, x in value.items()}
    if isinstance(value, Batch):
        present = {name: x for name in _WITH_ROWS if (x := getattr(value, name)) is not None}
        return replace(value, **{name: _map(fn, x) for name, x in present.items()})
    return value


def stack_rows(batches: Sequence[Batch]) -> Batch:
    """Concatenate the rows of all batches, padded on the right with zeros (False in masks) to the longest row.

    Raises:
        ValueError: only some of the batches have a field.
    """
    length = max(batch.mask.shape[1] for batch in batches)

    def join(name: str, values: list[Any]) -> Any:
        if all(v is None for v in values):
            return None
        if any(v is None for v in values):
            raise ValueError(f"cannot stack batches: only some of them have the field {name}")
        if isinstance(values[0], dict):
            keys = dict.fromkeys(key for v in values for key in v)
            return {key: join(f"{name}.{key}", [v.get(key) for v in values]) for key in keys}
        if isinstance(values[0], Batch):
            return stack_rows(values)
        if name.split(".")[0] in _PER_ROW - {"extra", "masks"} or values[0].ndim < 2:
            return torch.cat(values)
        return torch.cat([pad_steps(v, length) for v in values])

    return Batch(**{name: join(name, [getattr(b, name) for b in batches]) for name in _WITH_ROWS})


def pad_steps(x: Tensor, length: int) -> Tensor:
    """Pad x (B, T, …) with zeros on the right to (B, length, …)."""
    short = length - x.shape[1]
    return x if short == 0 else torch.cat([x, x.new_zeros(x.shape[0], short, *x.shape[2:])], 1)


class Replier(Protocol):
    """A model that writes replies: the learner, or an expert that replaces it."""

    def reply(
        self,
        ids: Tensor,
        lengths: Tensor,
        state: Any = None,
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
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Sample one turn of text.

        Args:
            ids: (B, L), the tokens that follow those in `state`, right-padded.
            lengths: (B,), the number of these tokens in each row, at least 1.

        The other arguments are explained in `lightning_nlf.language.generation.reply`.

        Returns:
            tokens (B·copies, N ≤ max_new), right-padded; log_probs (B·copies, N); lengths (B·copies,), including the
            stop token; the state for the next turn if `resume` is set and possible, else None.
        """
        ...


class Actor(Replier, Protocol):
    """The methods of a model that a DataModule may call.

    They run in eval mode, without gradients, in the Trainer's precision.
    """

    def act(
        self, obs: Tensor, state: Any = None, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """Sample one action: obs (B, *obs) → actions (B, *act), log_probs (B,), values (B,) or None, state.

        `values` is None if `prepare` computes all values in one pass. `state` belongs to a recurrent network; it is
        None at the first step.
        """
        ...

    def values(self, obs: Tensor) -> Tensor:
        """The critic's values of single states, for a take-over that depends on these values: obs (N, *obs) → V (N,).

        Raises:
            ValueError: the model has no critic of states.
        """
        ...

    def token_values(self, batch: Batch) -> Tensor:
        """The critic's values before each valid step, for a take-over that needs these values: V (B, T), 0 elsewhere.

        Raises:
            ValueError: the model has no critic.
        """
        ...

    def token_log_probs(self, batch: Batch) -> Tensor:
        """Log-probabilities of the actions at `mask` under the current policy: (B, T), 0 elsewhere."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """Compute values, returns and advantages, once per collection.

        Means and variances are computed over all ranks.
        """
        ...


class Expert(Protocol):
    """Expert for control: acts in place of the learner, and gives its own distribution.

    Set in the yaml by `class_path`.
    """

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sample actions: obs (N, *obs) → actions (N, *act), log_probs (N,), distribution parameters, each (N, …).

        A deterministic expert returns log_probs of +inf, the log-density of a point mass. Importance weights against
        such an expert are refused.
        """
        ...


class TextExpert(Replier, Protocol):
    """Expert for text: continues the learner's reply or labels its tokens. Set in the yaml by `class_path`."""

    def label(self, obs: Tensor, where: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sample the expert's tokens at the N True steps of `where` (B, T), given the tokens obs (B, T).

        Returns actions (N,) and the parameters of the distribution that they are drawn from, each (N, …).
        """
        ...


class Scorer(Protocol):
    """Reward for text that replaces the true reward, such as a reward model. Set in the yaml by `class_path`."""

    def score(self, batch: Batch) -> Tensor:
        """Rewards (B, T), at the last valid step if a whole reply is scored, else at the end of each step of the reply.

        Needs `obs`, `actions`, `valid`, `mask` and `final_obs`.
        """
        ...
