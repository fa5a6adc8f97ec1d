"""The one contract between environments and objectives. Imports torch only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B rows of T steps, right-padded; control and text differ only in the trailing shapes.

    One row is one episode, one fragment of it, or one dialogue: no boundary lies inside a row.
    All but the first four fields are optional.
    """

    obs: Tensor  # (B, T, *obs)  state, or token ids
    actions: Tensor  # (B, T, *act)  as sampled, before the environment clips; or the next token
    valid: Tensor  # (B, T) bool  somebody decided here, learner or expert; returns and γ run over these steps
    mask: Tensor  # (B, T) bool, ⊆ valid  the learner acted here and learns from it
    log_probs: Tensor | None = None  # (B, T) of the behaviour, whoever acted
    rewards: Tensor | None = None  # (B, T)
    values: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)
    advantages: Tensor | None = None  # (B, T)
    ref_log_probs: Tensor | None = None  # (B, T)
    final_obs: Tensor | None = None  # (B, *obs)  what followed the last step
    terminated: Tensor | None = None  # (B,) bool  ended by the environment; else truncated, and V(final_obs) follows
    expert_actions: Tensor | None = None  # (B, T, *act)  what the expert did, or would have done
    expert_mask: Tensor | None = None  # (B, T) bool  where that is known; it means nothing else
    expert_params: dict[str, Tensor] | None = None  # each (B, T, …): {"mean", "std"} or {"logits"}
    group: Tensor | None = None  # (B,) int  rows of one prompt share it; a minibatch never splits a group
    rank: Tensor | None = None  # (B,) int  0 is best, equal is a tie, −1 is unranked
    score: Tensor | None = None  # (B,)
    view: Batch | None = None  # the same actions in the same order behind another prompt
    masks: dict[str, Tensor] = field(default_factory=dict)  # each (B, T) or (B,) bool: what a term may be a mean over
    metrics: dict[str, Tensor] = field(default_factory=dict)  # each (B,): numbers of an episode, logged; NaN if unknown
    extra: dict[str, Tensor] = field(default_factory=dict)  # each (B,) or (B, T, …): anything else
    # True steps of each mask, averaged over the micro-batches and ranks of one optimizer step (`stamp_totals`)
    totals: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for field_name in ("extra", "masks", "metrics"):
            for name, x in getattr(self, field_name).items():
                if x.ndim > 1 and x.shape[:2] != self.mask.shape[:2]:
                    raise ValueError(f"{field_name}.{name}: shape {tuple(x.shape)} is neither (B,) nor (B, T, …)")

    def __len__(self) -> int:
        return len(self.mask)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """`fn` applied to every tensor that has rows; `totals` stay."""
        return _map(fn, self)

    def __getitem__(self, rows: Any) -> Batch:
        """The chosen rows, with padding on the right cut to the longest of them; totals are dropped.

        `rows` is a slice, an index tensor (n,) or a boolean tensor (B,).
        """
        chosen = replace(self.map(lambda x: x[rows]), totals={})
        return chosen.trim()

    def trim(self) -> Batch:
        """Without the columns on the right in which no row has a valid or an expert step."""
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
        named: dict[str, Any] = {
            name: {key: x if x.ndim == 1 else x[:, :length] for key, x in getattr(self, name).items()}
            for name in ("masks", "extra")
        }
        return replace(self, **cut, **named, view=view)

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Every tensor moved, `totals` too. Lightning calls this to bring a batch to the device."""
        totals = {name: total.to(*args, **kwargs) for name, total in self.totals.items()}
        return replace(self.map(lambda x: x.to(*args, **kwargs)), totals=totals)

    def with_masks(self, **masks: Tensor) -> Batch:
        """With more named masks, each (B, T) or (B,) bool."""
        return replace(self, masks=self.masks | masks)

    def with_extra(self, **tensors: Tensor) -> Batch:
        """With more tensors in `extra`, each (B,) or (B, T, …)."""
        return replace(self, extra=self.extra | tensors)

    def detach(self) -> Batch:
        return self.map(Tensor.detach)


class MissingField(ValueError):
    """The batch lacks a field that a term needs."""


@dataclass(frozen=True)
class Sampling:
    """Tokens of prompts that are read, and tokens that are sampled behind them at most."""

    prompts: int = 0
    new: int = 0

    def __add__(self, other: Sampling) -> Sampling:
        return Sampling(self.prompts + other.prompts, self.new + other.new)

    def __mul__(self, times: int) -> Sampling:
        return Sampling(self.prompts * times, self.new * times)


@dataclass(frozen=True)
class Workload:
    """Rows and tokens of one training iteration of language, over all ranks; an estimate, where replies are sampled.

    Args:
        rows: that are learned from; tokens: of these, prompts included; passes: how often each is learned from.
        collection: what an iteration samples; evaluation: what one validation does.
    """

    rows: int
    tokens: int
    passes: int = 1
    collection: Sampling = Sampling()
    evaluation: Sampling = Sampling()


class TeacherStopped(RuntimeError):
    """A judge, critic or user cannot go on: nobody answers, or the budget is spent. What was answered is kept."""


def required(x: Tensor | None, message: str) -> Tensor:
    """x; raises MissingField with the message where there is none."""
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
    """One batch with the rows of all, padded on the right with zeros (False in masks) to the longest.

    Raises:
        ValueError: a field is present in some of them only.
    """
    length = max(batch.mask.shape[1] for batch in batches)

    def join(name: str, values: list[Any]) -> Any:
        if all(v is None for v in values):
            return None
        if any(v is None for v in values):
            raise ValueError(f"cannot stack batches: {name} is missing in some of them")
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
    """x (B, T, …) → (B, length, …), zeros on the right."""
    short = length - x.shape[1]
    return x if short == 0 else torch.cat([x, x.new_zeros(x.shape[0], short, *x.shape[2:])], 1)


class Replier(Protocol):
    """Whoever replies: the model that is trained, or an expert in its place."""

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
        """One turn of text: what is new since `state`, ids (B, L) right-padded with lengths (B,), each ≥ 1.

        Args: as of `lightning_nlf.language.generation.reply`.
        Returns tokens (B·copies, N ≤ max_new), right-padded; log_probs (B·copies, N); lengths (B·copies,), the stop
        token included; the state for the next turn if there is one (`resume`), else None.
        """
        ...


class Actor(Replier, Protocol):
    """All that a DataModule may know of a model. Runs in eval mode, without gradients, in the Trainer's precision."""

    def act(
        self, obs: Tensor, state: Any = None, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """One step of control: obs (B, *obs) → actions (B, *act), log_probs (B,), values (B,) or None, state.

        `values` is None where `prepare` computes them in one pass. `state` is a recurrent network's, None at first.
        """
        ...

    def values(self, obs: Tensor) -> Tensor:
        """What the critic says of single states, for a take-over that depends on it: obs (N, *obs) → V (N,).

        Raises:
            ValueError: there is no critic of states.
        """
        ...

    def token_values(self, batch: Batch) -> Tensor:
        """What the critic says before each valid step of replies, for a take-over that depends on it: V (B, T), else 0.

        Raises:
            ValueError: there is no critic.
        """
        ...

    def token_log_probs(self, batch: Batch) -> Tensor:
        """How likely the actions of `mask` are to it now: (B, T), 0 elsewhere."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """What is computed once per collection: values, returns, advantages, all moments over all ranks."""
        ...


class Expert(Protocol):
    """Whoever can act in the learner's place, and say how: injected in the yaml by `class_path`."""

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """obs (N, *obs) → actions (N, *act), log_probs (N,), the distribution's parameters, each (N, …).

        A deterministic expert's log_probs are +inf, the log-density of a point mass: importance weights
        against it are refused.
        """
        ...


class TextExpert(Replier, Protocol):
    """Whoever can go on in the learner's words, or say what it would have: injected in the yaml by `class_path`."""

    def label(self, obs: Tensor, where: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What it would have said at the N True steps of `where` (B, T), behind the tokens obs (B, T).

        Returns actions (N,), drawn from its distribution, and that distribution's parameters, each (N, …).
        """
        ...


class Scorer(Protocol):
    """Whoever pays for text in the place of the true reward: a reward model, injected in the yaml by `class_path`."""

    def score(self, batch: Batch) -> Tensor:
        """Rewards (B, T) on valid steps: of a whole reply on its last one, of a process at the ends of its steps.

        Needs `obs`, `actions`, `valid`, `mask` and `final_obs`.
        """
        ...
