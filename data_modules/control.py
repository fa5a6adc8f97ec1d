"""Base of DataModules for control tasks: collections with take-overs, expert labels and a label budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.label_buffer import labelled_steps
from data_modules.ranges import at_least, shares
from data_modules.rollout import LabelledRollouts
from data_modules.takeover import Takeover
from lightning_nlf.batch import Actor, Batch, Expert, stack_rows
from lightning_nlf.numbers import Count, Share, Size


class ControlDataModule(LabelledRollouts):
    """Collect episodes in waves of rows. An expert labels the learner's states, or takes over from the learner.

    Subclasses return the number of rows in a wave (`_rows`), play a wave (`_wave`), and play the evaluation
    (`evaluate`).

    Args:
        horizon: maximum number of steps in a row. An episode that is cut at the horizon continues in the next
            collection.
        min_steps: minimum number of steps in a collection, summed over all ranks.
        expert: the expert that labels the learner's states and takes over.
        takeover: the rule for when the expert acts; None = the expert never acts.
        label_share: share of the learner's steps that the expert labels with the action it would have taken.
        label_budget: maximum number of expert decisions in the whole run, counting labels and expert steps; None = no
            limit.
        evaluation_episodes: number of evaluation episodes with deterministic actions, and again with sampled actions.
    """

    def __init__(
        self,
        horizon: Size,
        min_steps: Count = 0,
        expert: Expert | None = None,
        takeover: Takeover | None = None,
        label_share: Share = 0.0,
        label_budget: Count | None = None,
        evaluation_episodes: Size = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least(1, horizon=horizon, evaluation_episodes=evaluation_episodes)
        shares(label_share=label_share)
        if expert is None and (takeover is not None or label_share or self.label_buffer is not None):
            raise ValueError("expert: takeover, label_share and label_buffer need one; give it, or leave them out")
        if takeover is not None and takeover.asks == "errors":
            kind = type(takeover).__name__
            raise ValueError(f"takeover: {kind} needs critiques of replies; use a plan, or ValueTriggered")
        self.horizon, self.min_steps = horizon, min_steps
        self.expert, self.takeover = expert, takeover
        self.label_share, self.label_budget = label_share, label_budget
        self.evaluation_episodes = evaluation_episodes
        self.finished: list[tuple[float, int]] = []  # return and length of each episode that ended in this collection
        self.labels_used = 0  # by this rank
        self.typical_length = 20.0  # mean number of steps per row in the last collection
        self.exhibit_rows: dict[str, Batch] = {}  # exhibit name → its row

    # ---- for subclasses, besides `evaluate`

    def _rows(self) -> int:
        """The number of rows that this rank plays in a wave.  Raises ValueError: too few rows."""
        raise NotImplementedError

    def _wave(self, actor: Actor, rng: np.random.Generator, rows: int) -> Batch:
        """Play `rows` rows, new or continued from the previous wave, and add the episodes that ended to `finished`."""
        raise NotImplementedError

    def _show(self, name: str, batch: Batch, row: int) -> None:
        """Store a row for the exhibit `name`."""
        self.exhibit_rows[name] = batch[row : row + 1].map(torch.clone)  # a copy, not a view of the whole collection

    # ---- collection

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        rows, min_steps = self._rows(), self._share(self.min_steps)
        self.finished = []
        waves: list[Batch] = []
        while not waves or sum(int(wave.valid.sum()) for wave in waves) < min_steps:
            wave = self._wave(actor, rng, rows)
            self.labels_used += 0 if wave.expert_mask is None else int(wave.expert_mask.sum())
            waves.append(wave)
        batch = self._label(stack_rows(waves), rng)
        self._account(batch)
        if self.label_buffer is not None:
            self.label_buffer.add(labelled_steps(batch))
        return batch

    def _plan(self, rows: int, rng: np.random.Generator) -> dict[str, Any]:
        """The arguments of `play_rows` that decide who acts in a wave."""
        players: dict[str, Any] = {"expert": self.expert, "expert_steps": self._labels_left}
        if self.takeover is not None:
            experience = self.counters["env_steps"]
            players["plan"] = self.takeover.plan(rows, self.horizon, self.typical_length, rng, experience)
            players["takeover"] = self.takeover
        return players

    def _label(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The batch with the expert's labels on a random share of the learner's steps, within the budget."""
        if self.expert is None or not self.label_share:
            return batch
        assert batch.expert_mask is not None and batch.expert_actions is not None and batch.expert_params is not None
        steps = batch.mask.nonzero()  # (N, 2)
        count = round(self.label_share * len(steps))
        if self._labels_left is not None:
            count = min(count, self._labels_left)
        chosen = steps[torch.from_numpy(rng.permutation(len(steps))[:count])]
        row, step = chosen.unbind(1)
        actions, _, params = self.expert.act(batch.obs[row, step])
        self.labels_used += count

        def with_labels(old: Tensor, new: Tensor | bool) -> Tensor:
            old = old.clone()
            old[row, step] = new
            return old

        return replace(
            batch,
            expert_mask=with_labels(batch.expert_mask, True),
            expert_actions=with_labels(batch.expert_actions, actions),
            expert_params={name: with_labels(x, params[name]) for name, x in batch.expert_params.items()},
        )

    @property
    def _labels_left(self) -> int | None:
        return None if self.label_budget is None else max(self._share(self.label_budget) - self.labels_used, 0)

    def _account(self, batch: Batch) -> None:
        injected = batch.valid & ~batch.mask
        labels = 0 if batch.expert_mask is None else int(batch.expert_mask.sum())
        self.count(env_steps=int(batch.valid.sum()), expert_steps=int(injected.sum()), labels=labels)
        self.typical_length = max(float(batch.valid.sum(1).double().mean()), 1.0)
        sums = torch.tensor([*np.sum(self.finished, 0), len(self.finished)] if self.finished else [0.0] * 3)
        returns, steps, episodes = self._sum_over_ranks(sums.double()).tolist()
        # if no episode has ended, there is nothing to log
        self.statistics = {"return": returns / episodes, "length": steps / episodes} if episodes else {}
        if injected.any() or "training" not in self.exhibit_rows:  # prefer the last episode in which the expert acted
            self._show("training", batch, int(injected.sum(1).argmax()))

    # ---- checkpoint

    def rank_state(self) -> dict[str, Any]:
        state = super().rank_state() | {"labels_used": self.labels_used, "typical_length": self.typical_length}
        moves = {} if self.takeover is None else self.takeover.state_dict()
        return state | ({"takeover": moves} if moves else {})

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        self.labels_used, self.typical_length = state["labels_used"], state["typical_length"]
        if self.takeover is not None:
            self.takeover.load_state_dict(state.get("takeover", {}))
