"""DataModule for InvertedPendulum: rollouts, expert labels, take-overs, and evaluation on separate seeds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_modules.control import ControlDataModule
from data_modules.pendulum.episodes import Ended, play
from data_modules.pendulum.simulator import InvertedPendulum
from data_modules.ranges import at_least
from lightning_nlf.batch import Actor, Batch
from lightning_nlf.numbers import Number, Size


class PendulumDataModule(ControlDataModule):
    """Many episodes at once of InvertedPendulum-v5 on MuJoCo.

    Args:
        episodes: number of rows in a wave, over all ranks.
        horizon: maximum number of steps in a row. An episode that is cut at the horizon continues in the next
            collection.
        solved: return at which the task counts as solved. Three such validations in a row end the fit. None = the fit
            does not end early.
        threads: number of threads for MuJoCo; None = one per core.
    """

    question = (
        "Keep the pole upright. A step is 0.04 s; an episode is over when the pole leans by 0.2 rad, "
        "or after 1000 steps."
    )

    def __init__(
        self,
        episodes: Size = 8,
        horizon: Size = InvertedPendulum.time_limit,
        threads: Size | None = None,
        solved: Number | None = 950.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(horizon=horizon, **kwargs)
        at_least(1, episodes=episodes)
        self.episodes, self.solved = episodes, solved
        self.simulator = InvertedPendulum(threads)
        self.play = partial(play, self.simulator)
        self.pending: Ended | None = None  # states in which the rows of the last wave stopped

    @property
    def sizes(self) -> dict[str, int]:
        return {"obs_dim": InvertedPendulum.obs_dim, "action_dim": InvertedPendulum.action_dim}

    # ---- collection

    def _rows(self) -> int:
        self.refuse_too_few("episodes", self.episodes)
        return self._share(self.episodes)

    def _wave(self, actor: Actor, rng: np.random.Generator, rows: int) -> Batch:
        states, elapsed, returns = self.simulator.reset(rows, rng), np.zeros(rows, dtype=np.int64), np.zeros(rows)
        if (before := self.pending) is not None:
            states = np.where(before.over[:, None], states, before.states)
            elapsed = np.where(before.over, elapsed, before.elapsed)
            returns = np.where(before.over, returns, before.returns)
        plan = self._plan(rows, rng)
        batch, now = self.play(actor, states, elapsed, self.horizon, returns=returns, **plan)
        self.pending = now
        self.finished += zip(now.returns[now.over], now.elapsed[now.over], strict=True)
        return batch

    # ---- evaluation

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        rows = max(self._share(self.evaluation_episodes), 1)
        states, elapsed = self.simulator.reset(rows, rng), np.zeros(rows, dtype=np.int64)
        limit = self.simulator.time_limit
        batch, _ = self.play(actor, states, elapsed, limit, deterministic=deterministic)
        if deterministic:
            self.exhibit_rows["evaluation"] = batch[:1]
        return batch

    def exhibits(self, folder: Path) -> list[Path]:
        return [self.film(row, folder / f"{name}.gif", f"{name} episode") for name, row in self.exhibit_rows.items()]

    def film(self, episode: Batch, path: Path, title: str) -> Path:
        """Draw an episode, a batch of one row, as a GIF that shows who acted."""
        from data_modules.pendulum.rendering import episode_gif

        assert episode.rewards is not None
        steps = int(episode.valid[0].sum())
        expert_acted = (episode.valid & ~episode.mask)[0, :steps].numpy()
        obs, actions, rewards = (x[0, :steps].numpy() for x in (episode.obs, episode.actions, episode.rewards))
        return episode_gif(obs, expert_acted, rewards, path, title=title, actions=actions)

    # ---- checkpoint

    def rank_state(self) -> dict[str, Any]:
        state = super().rank_state()
        if self.pending is not None:
            state["pending"] = {name: torch.from_numpy(x) for name, x in vars(self.pending).items()}
        return state

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        if "pending" in state:
            self.pending = Ended(**{name: x.numpy() for name, x in state["pending"].items()})
