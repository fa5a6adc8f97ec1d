"""Peers' side of `throughput.py`: stable-baselines3, gymnasium, envpool."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from multiprocessing import get_context
from typing import Any

import envpool
import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.side_by_side.closed_loop import BUDGET, Clock, law, steps_per_second

warnings.simplefilter("ignore")  # such as the one about the zoo's batch of 64 for a rollout of 32

ENV = "InvertedPendulum-v5"
Figures = dict[str, float]

# PPO settings: `env` is the kind and number of environments, the rest are constructor arguments other than defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"env": ("gymnasium", 1)},
    # rl-baselines3-zoo, hyperparams/ppo.yml, InvertedPendulum-v2 and -v3, with `normalize: true`
    "zoo": {
        "env": ("normalized", 1), "n_steps": 32, "batch_size": 64, "n_epochs": 5, "gamma": 0.999, "gae_lambda": 0.9,
        "learning_rate": 2.22425e-4, "ent_coef": 1.37976e-07, "clip_range": 0.4, "max_grad_norm": 0.3,
        "vf_coef": 0.19816,
    },
    # The default's passes and gradient steps per rollout, with 64 environments.
    "vector": {"env": ("gymnasium", 64), "n_steps": 256, "batch_size": 512},
    # The fastest settings: one gradient step per rollout, like our REINFORCE.
    "lean": {"env": ("envpool", 256), "n_steps": 128, "batch_size": 256 * 128, "n_epochs": 1},
}  # fmt: skip


class EnvPool(VecEnv):
    """envpool's environments with the interface of stable-baselines3: an environment that ends is reset at once."""

    def __init__(self, envs: int) -> None:
        self.pool = make_pool(envs)
        super().__init__(envs, Box(-np.inf, np.inf, (4,), np.float64), Box(-3, 3, (1,), np.float32))

    def reset(self) -> np.ndarray:
        return self.pool.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions.astype(np.float64)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, rewards, terminated, truncated, _ = self.pool.step(self.actions)
        over = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in over]
        if over.any():
            rows = np.flatnonzero(over)
            for row in rows:
                infos[row] = {"terminal_observation": obs[row].copy(), "TimeLimit.truncated": not terminated[row]}
            obs = obs.copy()
            obs[rows] = self.pool.reset(rows)[0]
        return obs, rewards, over, infos

    def close(self) -> None:
        self.pool.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError


def make_pool(envs: int) -> Any:
    return envpool.make_gymnasium(ENV, num_envs=envs, num_threads=len(os.sched_getaffinity(0)))


def make_ppo(settings: str, seed: int) -> PPO:
    arguments = dict(SETTINGS[settings])
    kind, envs = arguments.pop("env")
    env: VecEnv = EnvPool(envs) if kind == "envpool" else make_vec_env(ENV, envs, seed=seed)
    if kind == "normalized":
        env = VecNormalize(env, gamma=arguments["gamma"])
    return PPO("MlpPolicy", env, device="cpu", seed=None if kind == "envpool" else seed, **arguments)


# ---- environment steps/s of training


@cache
def learner(settings: str) -> PPO:
    """PPO that continues from repeat to repeat, after one rollout, which triggers lazy imports."""
    model = make_ppo(settings, seed=0)
    return model.learn(model.n_steps * model.n_envs)


def training(repeat: int, settings: str, rollouts: int, threads: list[int]) -> Figures:
    """Steps/s of `rollouts` and their updates, with each number of torch threads; the best rate counts."""
    model = learner(settings)
    steps, rates = rollouts * model.n_steps * model.n_envs, []
    for number in threads:
        torch.set_num_threads(number)
        started = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        rates.append(steps / (time.perf_counter() - started))
    return {"value": max(rates), "steps": steps}


# ---- stepping


def stepping(repeat: int, kind: str, envs: int, policy: str = "linear") -> Figures:
    act = law(policy)
    return {"single": single, "sync": sync, "envpool": pool}[kind](envs, act)


def processes(repeat: int, count: int) -> Figures:
    """Sum of `single` in `count` simultaneous processes: the speed of the cores for independent work."""
    with ExitStack() as stack:
        workers = [stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for _ in range(count)]
        for _ in ("to import", "to measure"):
            futures = [worker.submit(stepping, repeat, "single", 1) for worker in workers]
            total = sum(future.result()["value"] for future in futures)
    return {"value": total}


def single(envs: int, act: Callable[[np.ndarray], np.ndarray]) -> Figures:
    env = gymnasium.make(ENV)
    obs, _ = env.reset(seed=0)

    def step() -> None:
        nonlocal obs
        obs, _, terminated, truncated, _ = env.step(act(obs))
        if terminated or truncated:
            obs, _ = env.reset()

    return steps_per_second(step, 1)


def sync(envs: int, act: Callable[[np.ndarray], np.ndarray]) -> Figures:
    env = gymnasium.make_vec(ENV, num_envs=envs, vectorization_mode="sync")
    obs, _ = env.reset(seed=0)

    def step() -> None:
        nonlocal obs
        obs = env.step(act(obs))[0]

    return steps_per_second(step, envs)


def pool(envs: int, act: Callable[[np.ndarray], np.ndarray]) -> Figures:
    env = make_pool(envs)
    obs, _ = env.reset()

    def step() -> None:
        nonlocal obs
        obs = env.step(act(obs).astype(np.float64))[0]

    return steps_per_second(step, envs)


# ---- time to solve


class StopsTheClock(BaseCallback):
    """Callback that evaluates before every rollout except the first, that is after every update."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.solved = clock, False

    def _on_rollout_start(self) -> None:
        model, env = self.model, self.model.get_vec_normalize_env()

        def act(obs: np.ndarray) -> np.ndarray:
            inputs = env.normalize_obs(obs) if env is not None else obs
            return model.predict(inputs, deterministic=True)[0]

        if self.num_timesteps:
            self.solved = self.clock.over(self.num_timesteps, act)

    def _on_step(self) -> bool:
        return not self.solved


def solving(repeat: int, settings: str) -> Figures:
    """Time to solve, on the same seeds as ours; the clock starts with `learn`."""
    learner(settings)
    model, clock = make_ppo(settings, seed=1000 + repeat), Clock(repeat)
    clock.started = time.perf_counter()
    model.learn(BUDGET + 10_000, callback=StopsTheClock(clock))
    return clock.result()
