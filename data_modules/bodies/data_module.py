"""Any gymnasium body as a DataModule: the pendulum's rollouts, take-overs, labels and evaluation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_modules.bodies.vector import Bodies, make
from data_modules.control import ControlDataModule
from data_modules.episodes import play_rows
from data_modules.ranges import at_least
from lightning_nlf.batch import Actor, Batch
from lightning_nlf.numbers import Positive, Size


class Replay(NamedTuple):
    """All that is needed to see an episode again."""

    seed: int
    actions: list[NDArray[Any]]  # since its reset, at least `stop`
    start: int  # of the row that is shown, in steps since the reset
    stop: int


class GymnasiumDataModule(ControlDataModule):
    """A MuJoCo id of gymnasium, or another with flat Box observations and actions, many episodes at once.

    Args:
        id: as in `gymnasium.make`, such as Hopper-v5.
        envs: rows of a wave, over all ranks.
        horizon: steps a row at most; an episode that is cut here goes on in the next collection.
        reward_scale: of the rewards that are learned from, so that a critic's targets are of its size; returns are
            reported and evaluated as the body gives them.

    Raises:
        ValueError: no such id, or one whose actions are not continuous or whose episodes have no limit.
    """

    def __init__(
        self, id: str, envs: Size = 16, horizon: Size = 64, reward_scale: Positive = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(horizon=horizon, **kwargs)
        at_least(1, envs=envs)
        if not (math.isfinite(reward_scale) and reward_scale > 0):
            raise ValueError(f"reward_scale: got {reward_scale}, must be finite and above 0")
        self.id, self.envs, self.reward_scale = id, envs, reward_scale
        env = make(id)
        assert env.spec is not None and env.spec.max_episode_steps is not None
        self.time_limit = env.spec.max_episode_steps
        env.close()
        self.bodies: Bodies | None = None  # made when the Trainer says how many are this rank's
        self._evaluated: Bodies | None = None
        self._replays: list[Replay] = []  # one a row of this collection
        self._shown: dict[str, Replay] = {}  # by the exhibit's name, beside `shown`

    # ---- collection

    def _rows(self) -> int:
        self.refuse_too_few("envs", self.envs)
        self._replays = []
        return self._share(self.envs)

    def _wave(self, actor: Actor, rng: np.random.Generator, rows: int) -> Batch:
        if self.bodies is None:
            self.bodies = Bodies(self.id, rows)
        bodies = self.bodies
        bodies.reset(bodies.over, rng)
        starts = bodies.elapsed
        batch = play_rows(bodies, actor, self.horizon, **self._plan(rows, rng))
        self.finished += zip(bodies.returns[bodies.over], bodies.elapsed[bodies.over], strict=True)
        self._replays += _replays(bodies, starts)
        assert batch.rewards is not None
        return replace(batch, rewards=batch.rewards * self.reward_scale)

    # ---- evaluation

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        rows = max(self._share(self.evaluation_episodes), 1)
        if self._evaluated is None:
            self._evaluated = Bodies(self.id, rows)
        bodies = self._evaluated
        bodies.reset(np.ones(rows, dtype=bool), rng)
        batch = play_rows(bodies, actor, self.time_limit, deterministic=deterministic)
        if deterministic:
            super()._show("evaluation", batch, 0)
            self._shown["evaluation"] = _replays(bodies, np.zeros(rows, dtype=np.int64))[0]
        return batch

    # ---- pictures

    def _show(self, name: str, batch: Batch, row: int) -> None:
        assert batch.rewards is not None
        super()._show(name, replace(batch, rewards=batch.rewards / self.reward_scale), row)
        self._shown[name] = self._replays[row]

    def exhibits(self, folder: Path) -> list[Path]:
        from data_modules.bodies.rendering import replay_gif

        paths = []
        for name, row in self.shown.items():
            assert row.rewards is not None
            seed, actions, start, stop = self._shown[name]
            expert_acted = (row.valid & ~row.mask)[0, : stop - start].numpy()
            rewards = row.rewards[0, : stop - start].numpy()
            path, title = folder / f"{name}.gif", f"{self.id}, {name} episode"
            if replay_gif(self.id, seed, actions[:stop], expert_acted, rewards, path, title=title):
                paths.append(path)
        return paths

    # ---- checkpoint

    def rank_state(self) -> dict[str, Any]:
        state = super().rank_state()
        if self.bodies is not None:
            state["bodies"] = self.bodies.state_dict()
        return state

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        if "bodies" in state:
            self.bodies = Bodies(self.id, self._share(self.envs))
            self.bodies.load_state_dict(state["bodies"])


def _replays(bodies: Bodies, starts: NDArray[np.int64]) -> list[Replay]:
    """Of the rows as they stand now."""
    ends = bodies.elapsed.tolist()
    return [Replay(*row) for row in zip(bodies.seeds.tolist(), bodies.actions, starts.tolist(), ends, strict=True)]
