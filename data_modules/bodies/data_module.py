"""DataModule for gymnasium's MuJoCo bodies: rollouts, take-overs, expert labels and evaluation."""

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
    """Everything needed to render an episode again."""

    seed: int
    actions: list[NDArray[Any]]  # all actions since the reset, at least `stop`
    start: int  # first and last step of the row, counted from the reset
    stop: int


class GymnasiumDataModule(ControlDataModule):
    """Many episodes at once of a MuJoCo id of gymnasium, or of any id with flat Box observations and actions.

    Args:
        id: id of the RL environment, as in `gymnasium.make`, for example Hopper-v5.
        envs: number of rows in a wave, over all ranks.
        horizon: maximum number of steps in a row. An episode that is cut at the horizon continues in the next
            collection.
        reward_scale: factor for the rewards in training, so that a critic's targets have a suitable size. Logged
            returns and evaluations are not scaled.

    Raises:
        ValueError: the id does not exist, its actions are not continuous, or its episodes have no limit.
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
        assert env.observation_space.shape is not None and env.action_space.shape is not None
        self._sizes = {"obs_dim": env.observation_space.shape[0], "action_dim": env.action_space.shape[0]}
        env.close()
        self.bodies: Bodies | None = None  # created when this rank's number of rows is known
        self._evaluated: Bodies | None = None
        self._replays: list[Replay] = []  # one replay for each row of this collection
        self._exhibit_replays: dict[str, Replay] = {}  # exhibit name → replay, as in `exhibit_rows`

    @property
    def sizes(self) -> dict[str, int]:
        return self._sizes

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
            self._exhibit_replays["evaluation"] = _replays(bodies, np.zeros(rows, dtype=np.int64))[0]
        return batch

    # ---- pictures

    def _show(self, name: str, batch: Batch, row: int) -> None:
        assert batch.rewards is not None
        super()._show(name, replace(batch, rewards=batch.rewards / self.reward_scale), row)
        self._exhibit_replays[name] = self._replays[row]

    def exhibits(self, folder: Path) -> list[Path]:
        from data_modules.bodies.rendering import replay_gif

        paths = []
        for name, row in self.exhibit_rows.items():
            assert row.rewards is not None
            seed, actions, start, stop = self._exhibit_replays[name]
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
    """The replays of the rows, from the steps `starts` to the current steps."""
    ends = bodies.elapsed.tolist()
    return [Replay(*row) for row in zip(bodies.seeds.tolist(), bodies.actions, starts.tolist(), ends, strict=True)]
