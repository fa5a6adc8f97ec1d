"""Pictures of the rewards of replies: hand-worked numbers, and the files of a fit and a test of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_modules.text import PositiveReviews, TextDataModule, WordTokenizer
from lightning_nlf.batch import Batch
from lightning_nlf.callbacks import Exhibits
from lightning_nlf.callbacks.pictures import History, course_of, draw_course, draw_replies, means_by, numbers_of
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import ReinforcePolicy, RLHFPolicy


def batch_of(places: dict[str, list[int]] | None = None, **metrics: list[float]) -> Batch:
    """A batch with rewards 1 + 2, 4, and 5 + 6. The reward after the end of a row does not count."""
    valid = torch.tensor([[True, True], [True, False], [True, True]])
    rewards = torch.tensor([[1.0, 2.0], [4.0, 9.0], [5.0, 6.0]])
    ids = torch.zeros(3, 2, dtype=torch.long)
    extra, numbers = ({name: torch.tensor(x) for name, x in part.items()} for part in (places or {}, metrics))
    return Batch(ids, ids, valid, valid, rewards=rewards, extra=extra, metrics=numbers)


def test_a_row_is_a_reply() -> None:
    batch = batch_of(length=[2.0, 1.0, 2.0], true_reward=[0.5, 0.25, 0.0], finished=[1.0, 1.0, 0.0])
    expected = {"reward": [3, 4, 11], "length": [2, 1, 2], "true_reward": [0.5, 0.25, 0]}
    assert numbers_of(batch) == expected


def test_parts_of_an_episode_are_one_point() -> None:
    """The first and the last row are one episode with reward 3 + 11. Both rows carry the metrics of the episode."""
    batch = batch_of({"episode": [4, 7, 4], "part": [0, 0, 1]}, length=[2.0, 1.0, 2.0])
    assert numbers_of(batch) == {"reward": [4, 14], "length": [1, 2]}


def test_a_batch_without_lengths_has_no_numbers() -> None:
    assert numbers_of(batch_of()) == {}


def test_means_by_length() -> None:
    """One bin per length: 2 → (1 + 3)/2, 5 → 7. Two bins of three lengths: 2 … 4 → x (2 + 2 + 4)/3, y (1 + 3 + 2)/3."""
    assert means_by([2, 5, 2], [1, 7, 3]) == ([2, 5], [2, 7])
    assert means_by([5, 2, 4, 2, 7], [7, 1, 2, 3, 9], bins=2) == ([pytest.approx(8 / 3), 6], [2, 8])
    assert means_by([3], [4]) == ([3], [4])


def test_a_course_has_the_validations_that_knew_all() -> None:
    """Only validations with all series count: not those before a resume that had no KL, nor one with a KL alone."""
    history = History()
    for cost, kl, proxy, true in ((10, None, 1, 0.1), (15, 0.3, None, None), (20, 0.5, 2, 0.2), (30, 1.5, 3, 0.1)):
        for name, x in (("kl", kl), ("return", proxy), ("true_reward", true)):
            if x is not None:
                history.append(f"val/{name}_sampled", cost, x)
    expected = {"cost": [20, 30], "kl": [0.5, 1.5], "reward": [2, 3], "true_reward": [0.2, 0.1]}
    assert course_of(history) == expected
    del history.points["val/true_reward_sampled"]
    assert "true_reward" not in course_of(history) and course_of(history)["reward"] == [2, 3]
    del history.points["val/kl_sampled"]
    assert course_of(history)["cost"] == []


class PaysLength:
    """A `Scorer` that pays 1 for each token."""

    def score(self, batch: Batch) -> Tensor:
        return last_valid(batch.valid) * batch.valid.sum(1, keepdim=True).float()


def language(kind: Any, **knobs: Any) -> tuple[ReinforcePolicy, TextDataModule]:
    torch.manual_seed(0)
    policy = GRUPolicy(vocabulary=288, width=16)
    with torch.no_grad():
        policy.head.bias[1] += 4  # the stop token: replies of several lengths
    module = kind(policy=policy, optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01))
    settings = {"prompts": 4, "replies": 2, "max_new": 6, "evaluation_prompts": 8}
    return module, TextDataModule(PositiveReviews(), tokenizer=WordTokenizer(), **(settings | knobs))


def test_a_fit_and_a_test_leave_their_pictures(fit: Any) -> None:
    """The plotted numbers equal the logged means of the replies, with one point per validation."""
    module, data_module = language(RLHFPolicy, reward=PaysLength())
    callback = Exhibits()
    trainer = fit.trainer(3, [callback])
    trainer.fit(module, data_module)
    logged: dict[str, list[float]] = {}
    for _, metrics in fit.logger.metrics:
        for name, x in metrics.items():
            logged.setdefault(name, []).append(x)
    course = course_of(callback.history)
    assert course["kl"] == pytest.approx(logged["val/kl_sampled"]) and len(course["kl"]) == 3
    assert course["reward"] == pytest.approx(logged["val/return_sampled"])
    assert course["true_reward"] == pytest.approx(logged["val/true_reward_sampled"])
    names = {path.name for path in fit.logger.artifacts}
    assert {"overoptimization.png", "val_replies.png"} <= names and "test_replies.png" not in names
    (metrics, sampled) = trainer.test(module, data_module, verbose=False)
    numbers = callback._replies
    assert numbers["reward"] == numbers["length"] and len(numbers["length"]) == 8  # a point for each token
    assert len(set(numbers["length"])) > 1
    for name, x in {"return": numbers["reward"], "true_reward": numbers["true_reward"]}.items():
        assert sum(x) / 8 == pytest.approx((metrics | sampled)[f"test/{name}_sampled"], abs=1e-5)
    assert "test/kl_sampled" in metrics | sampled
    picture = fit.folder / "exhibits" / "test_replies.png"
    assert picture in fit.logger.artifacts and picture.read_bytes().startswith(b"\x89PNG")
    assert (fit.folder / "exhibits" / "overoptimization.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_reference_and_a_proxy_only_rewards_by_length_are_drawn(fit: Any) -> None:
    module, data_module = language(ReinforcePolicy)
    callback = Exhibits()
    fit.trainer(1, [callback]).validate(module, data_module, verbose=False)
    assert {path.name for path in (fit.folder / "exhibits").iterdir()} == {"val_replies.png"}
    assert set(callback._replies) == {"length", "reward"}


def test_a_rehearsed_test_leaves_no_files(fit: Any) -> None:
    module, data_module = language(RLHFPolicy)
    fit.trainer(1, [Exhibits()], fast_dev_run=True).test(module, data_module, verbose=False)
    assert not fit.folder.exists()


def test_a_single_point_is_drawn(tmp_path: Path) -> None:
    point = {"cost": [5.0], "kl": [0.1], "reward": [1.0]}
    assert draw_course(point, "tokens", tmp_path / "a" / "course.png", "run").is_file()
    assert draw_replies({"length": [3.0], "reward": [1.0]}, tmp_path / "replies.png", "run").is_file()
