"""Feedback providers: rules, models behind endpoints, local models, or the policy. Imports happen on first use."""

from importlib import import_module
from typing import Any

_FILES = {
    "comparisons": ("Example", "ListwiseQuestion", "PreferenceQuestion"),
    "constitution": ("Constitution",),
    "endpoint": ("Endpoint",),
    "endpoint_critic": ("EndpointCritic",),
    "endpoint_user": ("EndpointUser",),
    "judge_reward": ("JudgeReward",),
    "local_judge": ("LocalJudge",),
    "model_judge": ("ModelJudge",),
    "own": ("OwnProvider",),
    "provider": ("Provider",),
    "questions": ("CritiqueQuestion", "ExpectedQuestion", "ScoreQuestion"),
    "rules": ("EnvironmentProvider", "RuleProvider"),
}


def __getattr__(name: str) -> Any:
    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
