"""The pendulum as a DataModule: rollouts, an expert who labels or takes over, evaluation on seeds of its own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.label_buffer import labelled_steps
from data_modules.pendulum.episodes import Ended, play
from data_modules.pendulum.simulator import InvertedPendulum
from data_modules.rollout import RolloutDataModule
from data_modules.takeover import Takeover
from lightning_nlf.batch import Actor, Batch, Expert, stack_rows


class PendulumDataModule(RolloutDataModule):
    """InvertedPendulum-v5 on MuJoCo, many episodes at once.

    Args:
        episodes: rows of a collection, over all ranks.
        horizon: steps a row at most; an episode that is cut here goes on in the next collection.
        min_steps: collect again until there are so many steps, over all ranks.
        expert: who labels the learner's states, and takes over.
        takeover: when the expert acts; None = never.
        label_share: part of the learner's steps on which the expert says what it would have done.
        label_budget: expert decisions in the whole run, labels and steps it acted on; None = as many as wanted.
        evaluation_episodes: of each kind, deterministic and sampled.
        threads: for MuJoCo; None = as many as there are cores.
    """

    def __init__(
        self,
        episodes: int = 8,
        horizon: int = InvertedPendulum.time_limit,
        min_steps: int = 0,
        expert: Expert | None = None,
        takeover: Takeover | None = None,
        label_share: float = 0.0,
        label_budget: int | None = None,
        evaluation_episodes: int = 10,
        threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("episodes", episodes), ("horizon", horizon), ("evaluation_episodes", evaluation_episodes)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, must be at least 1")
        if not 0 <= label_share <= 1:
            raise ValueError(f"label_share: got {label_share}, must be in [0, 1]")
        if expert is None and (takeover is not None or label_share or self.label_buffer is not None):
            raise ValueError("expert: takeover, label_share and label_buffer need one")
        self.episodes, self.horizon, self.min_steps = episodes, horizon, min_steps
        self.expert, self.takeover = expert, takeover
        self.label_share, self.label_budget = label_share, label_budget
        self.evaluation_episodes = evaluation_episodes
        self.simulator = InvertedPendulum(threads)
        self.play = partial(play, self.simulator)
        self.pending: Ended | None = None  # where the rows of the last collection stopped
        self.finished: list[tuple[float, int]] = []  # return and length of the episodes that ended in this collection
        self.labels_used = 0  # by this rank
        self.typical_length = 20.0  # steps an episode, of the last collection
        self.shown: dict[str, Batch] = {}  # one row each, by the exhibit's name

    # ---- collection

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        self.refuse_too_few("episodes", self.episodes)
        rows, wanted = self._share(self.episodes), self._share(self.min_steps)
        self.finished = []
        waves = [self._wave(actor, rng, rows)]
        while sum(int(wave.valid.sum()) for wave in waves) < wanted:
            waves.append(self._wave(actor, rng, rows))
        batch = self._label(stack_rows(waves) if len(waves) > 1 else waves[0], rng)
        self._account(batch)
        if self.label_buffer is not None:
            self.label_buffer.add(labelled_steps(batch))
        return batch

    def _wave(self, actor: Actor, rng: np.random.Generator, rows: int) -> Batch:
        states, elapsed, returns = self.simulator.reset(rows, rng), np.zeros(rows, dtype=np.int64), np.zeros(rows)
        if self.pending is not None:
            states = np.where(self.pending.over[:, None], states, self.pending.states)
            elapsed = np.where(self.pending.over, elapsed, self.pending.elapsed)
            returns = np.where(self.pending.over, returns, self.pending.returns)
        left = self._labels_left
        plan = None if self.takeover is None else self.takeover.plan(rows, self.horizon, self.typical_length, rng)
        batch, self.pending = self.play(
            actor, states, elapsed, self.horizon, returns=returns, expert=self.expert, plan=plan, expert_steps=left
        )
        self.finished += zip(
            self.pending.returns[self.pending.over], self.pending.elapsed[self.pending.over], strict=True
        )
        if batch.expert_mask is not None:
            self.labels_used += int(batch.expert_mask.sum())
        return batch

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
        assert batch.rewards is not None and self.pending is not None
        injected = batch.valid & ~batch.mask
        labels = 0 if batch.expert_mask is None else int(batch.expert_mask.sum())
        self.count(env_steps=int(batch.valid.sum()), expert_steps=int(injected.sum()), labels=labels)
        self.typical_length = max(float(batch.valid.sum(1).double().mean()), 1.0)
        sums = torch.tensor([*np.sum(self.finished, 0), len(self.finished)] if self.finished else [0.0] * 3)
        returns, steps, episodes = self._sum_over_ranks(sums.double()).tolist()
        if episodes:  # else every episode goes on in the next collection
            self.statistics = {"return": returns / episodes, "length": steps / episodes}
        if injected.any() or "training" not in self.shown:  # the last episode in which the expert acted
            row = int(injected.sum(1).argmax())
            self.shown["training"] = batch[row : row + 1].map(torch.clone)  # not a view of the whole collection

    # ---- evaluation

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        rows = max(self._share(self.evaluation_episodes), 1)
        states, elapsed = self.simulator.reset(rows, rng), np.zeros(rows, dtype=np.int64)
        limit = self.simulator.time_limit
        batch, _ = self.play(actor, states, elapsed, limit, deterministic=deterministic)
        if deterministic:
            self.shown["evaluation"] = batch[:1]
        return batch

    def exhibits(self, folder: Path) -> list[Path]:
        from data_modules.pendulum.rendering import episode_gif

        paths = []
        for name, row in self.shown.items():
            assert row.rewards is not None
            steps = int(row.valid[0].sum())
            expert_acted = (row.valid & ~row.mask)[0, :steps].numpy()
            obs, actions, rewards = (x[0, :steps].numpy() for x in (row.obs, row.actions, row.rewards))
            path = folder / f"{name}.gif"
            paths.append(episode_gif(obs, expert_acted, rewards, path, title=f"{name} episode", actions=actions))
        return paths

    # ---- checkpoint

    def rank_state(self) -> dict[str, Any]:
        state = super().rank_state() | {"labels_used": self.labels_used, "typical_length": self.typical_length}
        if self.pending is not None:
            state["pending"] = {name: torch.from_numpy(x) for name, x in vars(self.pending).items()}
        return state

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        self.labels_used, self.typical_length = state["labels_used"], state["typical_length"]
        if "pending" in state:
            self.pending = Ended(**{name: x.numpy() for name, x in state["pending"].items()})
