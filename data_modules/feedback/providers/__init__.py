"""Feedback providers: rules, models, the policy itself. Judges and openai are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_modules.feedback.providers.comparisons import Example as Example
    from data_modules.feedback.providers.comparisons import ListwiseQuestion as ListwiseQuestion
    from data_modules.feedback.providers.comparisons import PreferenceQuestion as PreferenceQuestion
    from data_modules.feedback.providers.constitution import Constitution as Constitution
    from data_modules.feedback.providers.endpoint import Endpoint as Endpoint
    from data_modules.feedback.providers.judge_reward import JudgeReward as JudgeReward
    from data_modules.feedback.providers.model_judge import ModelJudge as ModelJudge
    from data_modules.feedback.providers.own import OwnProvider as OwnProvider
    from data_modules.feedback.providers.provider import Provider as Provider
    from data_modules.feedback.providers.questions import CritiqueQuestion as CritiqueQuestion
    from data_modules.feedback.providers.questions import ExpectedQuestion as ExpectedQuestion
    from data_modules.feedback.providers.questions import ScoreQuestion as ScoreQuestion
    from data_modules.feedback.providers.rules import EnvironmentProvider as EnvironmentProvider
    from data_modules.feedback.providers.rules import RuleProvider as RuleProvider

_FILES = {
    "comparisons": ("Example", "ListwiseQuestion", "PreferenceQuestion"),
    "constitution": ("Constitution",),
    "endpoint": ("Endpoint",),
    "judge_reward": ("JudgeReward",),
    "model_judge": ("ModelJudge",),
    "own": ("OwnProvider",),
    "provider": ("Provider",),
    "questions": ("CritiqueQuestion", "ExpectedQuestion", "ScoreQuestion"),
    "rules": ("EnvironmentProvider", "RuleProvider"),
}


def __getattr__(name: str) -> Any:
    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"data_modules.feedback.providers.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
