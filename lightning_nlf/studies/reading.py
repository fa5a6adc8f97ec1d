"""Plain sentences of a report, generated from the intervals. A bound is rounded so that no sentence claims too much."""

from __future__ import annotations

import math

from lightning_nlf.studies.comparison import Comparison, least_starts, simultaneous
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.statistics import bounds, rounded_down, rounded_up
from lightning_nlf.studies.summary import ArmFigures, Summary, baseline_of

WORDS = {
    "env_steps": "environment steps",
    "expert_steps": "expert steps",
    "optimizer_steps": "optimizer steps",
    "feedback_calls": "feedback calls",
    "iteration": "iterations",
}


def counter_words(counter: str) -> str:
    return WORDS.get(counter, counter.replace("_", " "))


def sentence(study: Study, summary: Summary, arm: str, counter: str) -> str:
    """One sentence on an arm at one counter, from the bounds that hold for all comparisons together."""
    figures = summary.arms[counter].get(arm)
    if figures is None:
        return f"{arm} has no runs yet."
    if not baseline_of(study, arm):
        return f"{arm} is the baseline.{_failures(figures, counter)}"
    comparison = summary.comparison(arm, counter)
    if comparison is None:
        return f"{arm} cannot be compared with {baseline_of(study, arm)} in {counter_words(counter)}."
    least = max(least_starts(simultaneous(summary.planned)), least_starts(simultaneous(1)))
    if comparison.starts < least:
        units = "seed" if comparison.starts == comparison.pairs else "start"
        plural = "" if comparison.starts == 1 else "s"
        reason = f" with {summary.planned} comparisons" if summary.planned > 1 else ""
        return (
            f"{arm}: no claim is made from {comparison.starts} {units}{plural}; "
            f"at least {least} are needed{reason}.{_failures(figures, counter)}"
        )
    text = _steps(comparison, counter) if study.solved else _metric(study, comparison)
    return f"{text}, over {_seeds(comparison)}.{_failures(figures, counter)}"


def _seeds(comparison: Comparison) -> str:
    seeds = f"{comparison.pairs} seeds"
    return seeds if comparison.starts == comparison.pairs else f"{seeds} from {comparison.starts} starts"


def _failures(figures: ArmFigures, counter: str) -> str:
    runs = len(figures.figures)
    if not figures.unsolved:
        return f" {figures.failures} of its {runs} runs failed and count as the worst." if figures.failures else ""
    within = f"within {figures.limit:,.0f} {counter_words(counter)}"
    if figures.unsolved == runs:
        return f" None of its {runs} runs solved the task {within}."
    rest = "the other did" if figures.unsolved == 1 else "the others did"
    return f" {runs - figures.unsolved} of its {runs} runs solved the task; {rest} not {within}."


def _steps(comparison: Comparison, counter: str) -> str:
    arm, base, words = comparison.arm, comparison.baseline, counter_words(counter)
    _, low, high = comparison.together
    if low > 1:
        return f"{arm} needs fewer {words} than {base}{_times(low, 'fewer')}"
    if high < 1:
        return f"{arm} needs more {words} than {base}{_times(math.inf if high == 0 else 1 / high, 'more')}"
    anywhere = f"[{rounded_down(low, decimals(low))}, {rounded_up(high, decimals(high))}]"
    return f"{arm} is not shown to differ from {base} in {words}: the ratio may be anywhere in {anywhere}"


def _times(bound: float, direction: str) -> str:
    """`: at least 4.1 times fewer`; nothing if the rounded bound says no more than the direction."""
    least = rounded_down(bound, decimals(bound))
    return "" if math.isinf(bound) or float(least.replace(",", "")) <= 1 else f": at least {least} times {direction}"


def _metric(study: Study, comparison: Comparison) -> str:
    arm, base = comparison.arm, comparison.baseline
    _, low, high = comparison.together
    if low > 0 or high < 0:
        direction = "higher" if low > 0 else "lower"
        verdict = "better" if (low > 0) == study.higher else "worse"
        least = low if low > 0 else -high
        amount = "" if math.isinf(least) else f" by at least {rounded_down(least, decimals(least))}"
        return f"{arm} is {verdict} than {base}: its {study.metric} is {direction}{amount}"
    digits = decimals(*(x for x in (low, high) if math.isfinite(x)))
    return (
        f"{arm} is not shown to differ from {base} in {study.metric}: "
        f"the difference may be anywhere in {bounds(low, high, digits)}"
    )


def decimals(*values: float, significant: int = 2) -> int:
    """Decimal places that give the largest of these values this many significant digits, at least."""
    largest = max((abs(x) for x in values if math.isfinite(x)), default=0.0)
    return 0 if largest == 0 else max(0, significant - 1 - math.floor(math.log10(largest)))
