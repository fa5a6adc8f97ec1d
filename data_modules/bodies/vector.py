"""Episodes of one gymnasium id, played with the vector API; only running episodes are stepped."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.episodes import BoolArray, FloatArray, IntArray
from data_modules.pendulum.simulator import load_mujoco

load_mujoco()  # before gymnasium imports it

import gymnasium  # noqa: E402
from gymnasium.spaces import Box  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402


def make(id: str, **options: Any) -> gymnasium.Env:
    """Make one RL environment of a registered id, without gymnasium's checks at every step.

    Raises:
        ValueError: the id does not exist, its actions or observations are not vectors of numbers, or its episodes have
            no limit.
    """
    try:
        env = gymnasium.make(id, disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"id: {error} Available MuJoCo bodies: {', '.join(bodies())}") from None
    for name, space in (("actions", env.action_space), ("observations", env.observation_space)):
        if not isinstance(space, Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
            raise ValueError(f"id: the {name} of {id} are {space}, must be a vector of real numbers (a flat Box)")
    if env.spec is None or env.spec.max_episode_steps is None:
        raise ValueError(f"id: episodes of {id} have no limit; register it with max_episode_steps")
    return env


def bodies() -> list[str]:
    """The newest MuJoCo ids of the installed gymnasium."""
    return sorted(id for id, spec in gymnasium.registry.items() if "mujoco" in str(spec.entry_point) and "-v5" in id)


class Bodies:
    """B episodes of `id`, one per row (`Episodes`). An episode that has ended waits for `reset`.

    Actions are clipped to the bounds of the action space before the step, so control costs are computed from the
    clipped action. Only running rows are stepped: when an episode ends, a new vector environment is made from the
    remaining single environments.

    An episode is determined by its seed and its actions, and checkpoints store these. Loading replays the episode,
    which gives the same state bit for bit, with MuJoCo's warm start, contact forces and time limit.

    Raises:
        ValueError: see `make`.
    """

    def __init__(self, id: str, rows: int) -> None:
        self.id = id
        self._whole = SyncVectorEnv([partial(make, id)] * rows, autoreset_mode=AutoresetMode.DISABLED)
        self._vector, self._stepped = self._whole, np.arange(rows)
        space = self._whole.single_action_space
        assert isinstance(space, Box)
        self._low, self._high = space.low, space.high
        self.obs_dim: int = self._whole.single_observation_space.shape[0]  # type: ignore[index]
        self.action_dim: int = space.shape[0]
        self.obs = np.zeros((rows, self.obs_dim))
        self.over = np.ones(rows, dtype=bool)  # before the first reset
        self.seeds = np.zeros(rows, dtype=np.int64)
        self.returns = np.zeros(rows)  # return of each episode so far
        self.actions: list[list[NDArray[Any]]] = [[] for _ in range(rows)]  # actions of each episode so far, in order

    def __len__(self) -> int:
        return len(self.over)

    @property
    def elapsed(self) -> IntArray:
        """The number of steps since each episode's reset, (B,)."""
        return np.array([len(actions) for actions in self.actions], dtype=np.int64)

    def reset(self, rows: BoolArray, rng: np.random.Generator) -> None:
        """Begin new episodes in `rows`, (B,) bool. A seed is drawn for every row, even for rows that continue."""
        seeds, rows = rng.integers(2**31, size=len(self)), rows.copy()  # `rows` may be `over` itself
        if rows.any():
            self._begin(np.where(rows, seeds, self.seeds), rows)

    def _begin(self, seeds: IntArray, rows: BoolArray) -> None:
        obs, _ = self._whole.reset(seed=seeds.tolist(), options={"reset_mask": rows})
        self.obs[rows], self.over[rows], self.returns[rows] = obs[rows], False, 0.0
        self.seeds = seeds
        for row in np.flatnonzero(rows):
            self.actions[row] = []  # a new list, because an exhibit may still use the old list

    def observe(self, rows: IntArray) -> FloatArray:
        return self.obs[rows]

    def step(self, rows: IntArray, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray, BoolArray]:
        """See `Episodes.step`.

        Raises:
            ValueError: an action is not finite (MuJoCo would use 0, and only write it to a file).
        """
        if not np.isfinite(actions).all():
            raise ValueError(f"actions: not finite in rows {rows[~np.isfinite(actions).all(1)].tolist()}")
        obs, rewards, terminated, truncated, _ = self._running(rows).step(np.clip(actions, self._low, self._high))
        over = terminated | truncated
        self.obs[rows], self.over[rows] = obs, over
        self.returns[rows] += rewards
        for row, action in zip(rows.tolist(), actions, strict=True):
            self.actions[row].append(action)
        return rewards, terminated, over

    def _running(self, rows: IntArray) -> SyncVectorEnv:
        """A vector environment of `rows` only."""
        if not np.array_equal(rows, self._stepped):
            self._stepped, self._vector = rows, self._whole
            if len(rows) < len(self):
                single = [partial(self._whole.envs.__getitem__, row) for row in rows]
                self._vector = SyncVectorEnv(single, autoreset_mode=AutoresetMode.DISABLED)
                self._vector.closed = True  # otherwise garbage collection closes the single environments too
        return self._vector

    # ---- checkpoint

    def state_dict(self) -> dict[str, Tensor]:
        histories = [np.stack(actions) for actions in self.actions if actions]
        actions = np.concatenate(histories) if histories else np.zeros((0, self.action_dim), dtype=np.float32)
        arrays = {"seeds": self.seeds, "over": self.over, "elapsed": self.elapsed, "obs": self.obs, "actions": actions}
        return {name: torch.from_numpy(x.copy()) for name, x in arrays.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the episodes by replaying them up to their last step.

        Raises:
            ValueError: the number of stored episodes is not the number of rows.
        """
        seeds, over, elapsed, obs, actions = (
            state[name].numpy() for name in ("seeds", "over", "elapsed", "obs", "actions")
        )
        if len(seeds) != len(self):
            raise ValueError(
                f"envs: the checkpoint has {len(seeds)} episodes of this process, this run has {len(self)}; use the "
                "same envs and number of processes"
            )
        self._begin(seeds, np.ones(len(self), dtype=bool))
        ends = np.cumsum(elapsed)
        for t in range(int(elapsed.max())):
            rows = np.flatnonzero((elapsed > t) & ~self.over)
            if len(rows):
                self.step(rows, actions[ends[rows] - elapsed[rows] + t])
        strayed = (self.obs != obs).any(1) | (self.over != over)
        if strayed.any():
            # a different processor, or a different version of gymnasium or MuJoCo
            warnings.warn(
                f"{int(strayed.sum())} of {len(self)} episodes of {self.id} could not be replayed exactly; they are "
                "replaced by new ones",
                stacklevel=2,
            )
            self.over[strayed] = True
