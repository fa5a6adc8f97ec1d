"""Batched simulator of InvertedPendulum-v5: gymnasium's model on MuJoCo's thread pool."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.ranges import at_least

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def load_mujoco() -> ModuleType:
    """Import mujoco, set to off-screen rendering if there is no display and EGL can be loaded.

    Without EGL the setting does not change, because with MUJOCO_GL=egl and no library the import would fail.
    """
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"))):
        try:
            ctypes.CDLL("libEGL.so.1")
        except OSError:
            pass
        else:
            os.environ["MUJOCO_GL"] = "egl"
    import mujoco

    return mujoco


def model_path() -> Path:
    """The path of the MJCF model file in the installed gymnasium."""
    import gymnasium

    return Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "inverted_pendulum.xml"


def has_fallen(obs: FloatArray) -> BoolArray:
    """obs (n, 4) → (n,): True if the pole leans by more than 0.2 rad or a value is not finite (gymnasium's v5 rule)."""
    return ~(np.isfinite(obs).all(1) & (np.abs(obs[:, 1]) <= InvertedPendulum.lean_limit))


class InvertedPendulum:
    """Simulate a pole on a cart, B episodes at once. The simulator has no state: states are passed in and returned.

    A state is MuJoCo's full physics state, float64 (S,) = (time s, x m, θ rad, ẋ m/s, θ̇ rad/s); an observation is the
    state without the time. An action is one motor command, clipped to [−3, 3] (a force of 100 N per unit). The reward
    is 1 for a step after which the pole is still up. After `time_limit` steps an episode is truncated; the caller must
    count the steps.

    Episodes equal `gymnasium.make("InvertedPendulum-v5")` bit for bit while the cart does not touch the ends of its
    rail. At the ends they agree within 1e-12 until the pole falls, because the constraint solver does not start from
    the previous step.

    Calls share scratch arrays, so an instance must be used by one Python thread only.

    Args:
        threads: number of threads in the pool; None = one per available core.

    Raises:
        ValueError: threads < 1.
    """

    obs_dim = 4
    action_dim = 1
    time_limit = 1000
    frame_skip = 2
    reset_noise = 0.01
    lean_limit = 0.2  # rad
    action_limit = 3.0
    # Waking the pool costs as much as eight rows, so fewer than two such chunks run on the calling thread.
    _smallest_chunk = 8

    def __init__(self, threads: int | None = None) -> None:
        mujoco = load_mujoco()
        from mujoco.rollout import Rollout

        if threads is None:
            threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        at_least(1, threads=threads)
        self.threads = threads
        self.model = mujoco.MjModel.from_xml_path(str(model_path()))
        # No geoms can touch, and there are no sensors. Without these stages a step takes a fifth less time, with the
        # same result bit for bit.
        unused = mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_SENSOR
        self.model.opt.disableflags |= int(unused)
        self._control_spec = int(mujoco.mjtState.mjSTATE_CTRL)
        self.state_dim: int = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        self._time_dim = self.state_dim - self.obs_dim
        self._data = [mujoco.MjData(self.model) for _ in range(threads)]
        self._serial: Rollout | None = Rollout(nthread=0)
        self._pool: Rollout | None = Rollout(nthread=threads) if threads > 1 else None
        self._reserve(0)

    def _reserve(self, rows: int) -> None:
        self._models = [self.model] * rows
        self._control = np.empty((rows, self.frame_skip, self.action_dim))
        self._trajectory = np.empty((rows, self.frame_skip, self.state_dim))
        self._sensors = np.empty((rows, self.frame_skip, 0))

    def reset(self, episodes: int, rng: np.random.Generator) -> FloatArray:
        """Draw initial states (B, S), in which every coordinate is uniform in ±0.01.

        Rows use random numbers in gymnasium's order, so `reset(1, np.random.default_rng(s))` equals
        `env.reset(seed=s)`.
        """
        states = np.zeros((episodes, self.state_dim))
        states[:, self._time_dim :] = rng.uniform(-self.reset_noise, self.reset_noise, (episodes, self.obs_dim))
        return states

    def observe(self, states: FloatArray) -> FloatArray:
        """states (n, S) → observations (n, 4), a new array: x, θ, ẋ, θ̇."""
        return states[:, self._time_dim :].copy()

    def step(self, states: FloatArray, actions: NDArray[Any]) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Take one step of 0.04 s in each row; n may differ between calls, and may be 0.

        Args:
            states: (n, S); not changed.
            actions: (n, 1), of any float type.

        Returns:
            next_states (n, S), rewards (n,) and terminated (n,) bool, all new arrays.

        Raises:
            ValueError: a shape is wrong, or an action is not finite (MuJoCo would use 0, and only write it to a file).
            RuntimeError: after `close`.
        """
        rows = len(states)
        if states.shape != (rows, self.state_dim) or actions.shape != (rows, self.action_dim):
            raise ValueError(
                f"states, actions: got shapes {states.shape}, {actions.shape}, "
                f"must be (n, {self.state_dim}), (n, {self.action_dim})"
            )
        if not np.isfinite(actions).all():
            raise ValueError(f"actions: not finite in rows {np.flatnonzero(~np.isfinite(actions).all(1)).tolist()}")
        next_states = self._advance(np.ascontiguousarray(states, dtype=np.float64), actions)
        terminated = has_fallen(next_states[:, self._time_dim :])
        return next_states, (~terminated).astype(np.float64), terminated

    def _advance(self, states: FloatArray, actions: NDArray[Any]) -> FloatArray:
        if self._serial is None:
            raise RuntimeError("the simulator is closed")
        rows = len(states)
        if rows == 0:
            return np.empty((0, self.state_dim))
        if rows > len(self._models):
            self._reserve(max(rows, 2 * len(self._models)))
        control, trajectory = self._control[:rows], self._trajectory[:rows]
        control[:] = actions[:, None]
        threaded = self._pool is not None and rows >= 2 * self._smallest_chunk
        rollout = self._pool if threaded else self._serial
        assert rollout is not None
        rollout.rollout(
            self._models[:rows],
            self._data if threaded else self._data[:1],
            states,
            control,
            control_spec=self._control_spec,
            skip_checks=True,
            nstep=self.frame_skip,
            state=trajectory,
            sensordata=self._sensors[:rows],
            # Two chunks per thread: with fewer, a thread may idle at the end; with more, wake-ups cost time.
            chunk_size=max(self._smallest_chunk, -(-rows // (2 * self.threads))),
        )
        return trajectory[:, -1].copy()

    def close(self) -> None:
        """Stop the threads; further calls do nothing."""
        for rollout in (self._serial, self._pool):
            if rollout is not None:
                rollout.close()
        self._serial = self._pool = None
