"""What collections of control have in common: take-overs, labels and their budget, what they cost."""

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
    """Collects episodes in waves of rows; an expert labels the learner's states, or takes over.

    A child says how many rows a wave has, plays one (`_wave`), and plays those of the evaluation.

    Args:
        horizon: steps a row at most; an episode that is cut here goes on in the next collection.
        min_steps: collect again until there are so many steps, over all ranks.
        expert: who labels the learner's states, and takes over.
        takeover: when the expert acts; None = never.
        label_share: part of the learner's steps on which the expert says what it would have done.
        label_budget: expert decisions in the whole run, labels and steps it acted on; None = as many as wanted.
        evaluation_episodes: of each kind, deterministic and sampled.
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
            raise ValueError("expert: takeover, label_share and label_buffer need one")
        if takeover is not None and takeover.asks == "errors":
            kind = type(takeover).__name__
            raise ValueError(f"takeover: {kind} goes by the critique of a reply; use a plan, or ValueTriggered")
        self.horizon, self.min_steps = horizon, min_steps
        self.expert, self.takeover = expert, takeover
        self.label_share, self.label_budget = label_share, label_budget
        self.evaluation_episodes = evaluation_episodes
        self.finished: list[tuple[float, int]] = []  # return and length of the episodes that ended in this collection
        self.labels_used = 0  # by this rank
        self.typical_length = 20.0  # steps a row, of the last collection
        self.shown: dict[str, Batch] = {}  # one row each, by the exhibit's name

    # ---- what a child says, besides `evaluate`

    def _rows(self) -> int:
        """This rank's rows of a wave; refuses too few of them for all the parts they are cut into."""
        raise NotImplementedError

    def _wave(self, actor: Actor, rng: np.random.Generator, rows: int) -> Batch:
        """`rows` rows, new or going on from the wave before; adds to `finished`."""
        raise NotImplementedError

    def _show(self, name: str, batch: Batch, row: int) -> None:
        """Keep what the exhibit `name` needs of a row."""
        self.shown[name] = batch[row : row + 1].map(torch.clone)  # not a view of the whole collection

    # ---- collection

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        rows, wanted = self._rows(), self._share(self.min_steps)
        self.finished = []
        waves: list[Batch] = []
        while not waves or sum(int(wave.valid.sum()) for wave in waves) < wanted:
            wave = self._wave(actor, rng, rows)
            self.labels_used += 0 if wave.expert_mask is None else int(wave.expert_mask.sum())
            waves.append(wave)
        batch = self._label(stack_rows(waves), rng)
        self._account(batch)
        if self.label_buffer is not None:
            self.label_buffer.add(labelled_steps(batch))
        return batch

    def _plan(self, rows: int, rng: np.random.Generator) -> dict[str, Any]:
        """Who acts in a wave, as the players take it."""
        players: dict[str, Any] = {"expert": self.expert, "expert_steps": self._labels_left}
        if self.takeover is not None:
            experience = self.counters["env_steps"]
            players["plan"] = self.takeover.plan(rows, self.horizon, self.typical_length, rng, experience)
            players["takeover"] = self.takeover
        return players

    def _label(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The expert's word on a random share of the learner's own steps, as far as the budget goes."""
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

        def written(old: Tensor, new: Tensor | bool) -> Tensor:
            old = old.clone()
            old[row, step] = new
            return old

        return replace(
            batch,
            expert_mask=written(batch.expert_mask, True),
            expert_actions=written(batch.expert_actions, actions),
            expert_params={name: written(x, params[name]) for name, x in batch.expert_params.items()},
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
        # Without any, every episode goes on in the next collection: nothing is said of this one.
        self.statistics = {"return": returns / episodes, "length": steps / episodes} if episodes else {}
        if injected.any() or "training" not in self.shown:  # the last episode in which the expert acted
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
