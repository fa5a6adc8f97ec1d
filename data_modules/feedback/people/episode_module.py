"""Trains on what people said of recorded episodes: their score as the reward, what they expected to be imitated."""

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
from lightning_nlf.batch import Actor, Batch, stack_rows


class EpisodeFeedbackDataModule(OfflineDataModule):
    """A row for each judgement of a recorded episode.

    A score is the reward at the last step, and only with one the learner learns from its own steps (`mask`); `score` is
    NaN without. Where an expert was expected, `expert_mask` is True throughout, and its mean action what is imitated;
    where forces were, at the steps they were given for.

    Args:
        path: of a feedback file whose lines name an `episode`: what `pull` wrote.
        scale: lowest and highest score there is in the file.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: of `MinibatchDataModule`.

    Raises:
        ValueError: at `setup`, a line that is wrong, or whose episode is not there; names it and the mend.
    """

    def __init__(self, path: str, scale: Scale = (0.0, 1.0), **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self.scale = scale
        self.counters["feedback_calls"] = 0

    def setup(self, stage: str) -> None:
        if self.rows is not None:
            return
        self.judgements = read(self.path, self.scale)
        self.rows = stack_rows(each_line(self.judgements, _row))

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        said = [(judgement.of("score", 0), judgement.expected) for judgement in self.judgements]
        self.counters["feedback_calls"] = sum(x is not None for both in said for x in both)  # however often it is read
        return super().collect(actor, rng)


def _row(judgement: Judgement) -> Batch:
    if judgement.episode is None:
        raise ValueError("episode: is missing; replies are learned from with FeedbackDataModule")
    try:
        played = load_batch(judgement.episode)
    except ValueError as error:
        raise ValueError(f"episode: {error}") from None
    steps, score = int(played.valid.sum()), judgement.of("score", 0)
    known = torch.tensor([torch.nan if score is None else score])
    rewards = torch.zeros(played.mask.shape)
    rewards[0, steps - 1] = known.nan_to_num()
    expert_mask, actions = torch.zeros_like(played.mask), played.actions.clone()
    if judgement.expected is not None:
        make = expert_named(judgement.expected)
        if make is not None:
            actions, expert_mask = make().act(played.obs[0])[0][None], played.valid
        else:
            for step, force in forces(judgement.expected, steps).items():
                actions[0, step], expert_mask[0, step] = force, True
    learned = played.mask & (score is not None)
    played = replace(played, expert_mask=expert_mask, expert_actions=actions)
    return replace(played, mask=learned, score=known, rewards=rewards)
