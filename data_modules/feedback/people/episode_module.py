"""DataModule for training on people's reviews of episodes: scores are rewards, expected actions are imitated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from data_modules.feedback.people.forces import expert_named, forces
from data_modules.judgements.fields import Scale
from data_modules.judgements.files import each_line, read
from data_modules.judgements.schema import Judgement
from data_modules.offline import OfflineDataModule, load_batch
from data_modules.pendulum.simulator import InvertedPendulum
from lightning_nlf.batch import Actor, Batch, stack_rows


class EpisodeFeedbackDataModule(OfflineDataModule):
    """Train on recorded episodes with people's scores and expected actions, one row per judgement.

    A score is the reward at the last step. Without one, `score` is NaN and `mask` is False, so the learner does not
    learn from its own steps. If a person named an expert, `expert_mask` is True at all steps, and the expert's mean
    action is imitated. If a person gave forces, `expert_mask` is True only at the steps with a force.

    Args:
        path: a feedback file from `pull` in which every line names an `episode`.
        scale: lowest and highest possible score in the file.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: see `MinibatchDataModule`.

    Raises:
        ValueError: at `setup`, a line has an error or its episode is missing. The message says what to do.
    """

    def __init__(self, path: str, scale: Scale = (0.0, 1.0), **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self.scale = scale
        self.counters["feedback_calls"] = 0

    @property
    def sizes(self) -> dict[str, int]:
        return {"obs_dim": InvertedPendulum.obs_dim, "action_dim": InvertedPendulum.action_dim}

    def setup(self, stage: str) -> None:
        if self.rows is not None:
            return
        self.judgements = read(self.path, self.scale)
        self.rows = stack_rows(each_line(self.judgements, _row))

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        feedback = [(judgement.of("score", 0), judgement.expected) for judgement in self.judgements]
        # Set instead of added, because the same feedback counts only once, however often it is read.
        self.counters["feedback_calls"] = sum(x is not None for answers in feedback for x in answers)
        return super().collect(actor, rng)


def _row(judgement: Judgement) -> Batch:
    if judgement.episode is None:
        raise ValueError("episode: is missing; for replies in text use FeedbackDataModule")
    try:
        episode = load_batch(judgement.episode)
    except ValueError as error:
        raise ValueError(f"episode: {error}") from None
    steps, score = int(episode.valid.sum()), judgement.of("score", 0)
    reward_or_nan = torch.tensor([torch.nan if score is None else score])
    rewards = torch.zeros(episode.mask.shape)
    rewards[0, steps - 1] = reward_or_nan.nan_to_num()
    expert_mask, actions = torch.zeros_like(episode.mask), episode.actions.clone()
    if judgement.expected is not None:
        make = expert_named(judgement.expected)
        if make is not None:
            actions, expert_mask = make().act(episode.obs[0])[0][None], episode.valid
        else:
            for step, force in forces(judgement.expected, steps).items():
                actions[0, step], expert_mask[0, step] = force, True
    learner_steps = episode.mask & (score is not None)
    episode = replace(episode, expert_mask=expert_mask, expert_actions=actions)
    return replace(episode, mask=learner_steps, score=reward_or_nan, rewards=rewards)
