"""Every sentence of the pages on evidence and speed with a measured figure, worded again from the committed runs.

A lower bound is rounded down and an upper one up, so that a sentence never claims more than its interval.
"""

import json
import math
import re
from functools import cache, partial
from operator import itemgetter
from pathlib import Path

import pytest

from benchmarks.side_by_side import feedback_figures as figures
from lightning_nlf.studies.statistics import bounds, mean_interval, rounded_down, rounded_up

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVIDENCE = " ".join(" ".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("evidence", "speed")).split())
EVIDENCE = EVIDENCE.replace("**", "")


@cache
def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def short(number):
    """.18 for 0.18, as the prose has it."""
    return re.sub(r"^(-?)0\.", r"\1.", number)


def least(x, digits=2):
    return short(rounded_down(x, digits))


def at_most(x, digits=2):
    return short(rounded_up(x, digits))


def about(x, digits=2):
    return short(f"{x:.{digits}f}")


# ---- the speed-up study


def speed_up(arm, mode="sust", digits=0):
    """The lower bound that holds for all comparisons together."""
    return least(results("speedup")["summary"][arm][mode]["corrected"][1], digits)


def solved(arm, mode="sust"):
    entry = results("speedup")["summary"][arm][mode]
    return entry["seeds"] - entry["failures"]


def of_speed_ups():
    summary = results("speedup")["summary"]
    joint, injection = speed_up("joint/all"), speed_up("injection/all")
    few = [speed_up(f"{arm}/fifty", digits=1) for arm in ("joint", "injection", "dagger")]
    yield (
        f"The joint objective is at least {joint} times as fast as tuned REINFORCE, and injection at least "
        f"{injection} times, with {summary['injection/all']['sust']['labels']:.0f} labels of the expert. With 50 "
        f"labels in all they are at least {few[0]} and {few[1]} times as fast (DAgger {few[2]}, behaviour cloning "
        f"{speed_up('bc/fifty')})."
    )
    untuned = summary["reinforce_untuned/all"]
    assert untuned["sto"]["failures"] == untuned["sto"]["seeds"]
    yield (
        f"Tuning REINFORCE makes it at least {least(1 / untuned['sust']['corrected'][2], 1)} times as fast: untuned "
        f"(learning rate .003, 8 episodes an update) it takes {untuned['sust']['median'] / 1000:.0f}k steps, and its "
        "sampled policy never gets there within 200,000."
    )
    yield (
        f"gets past it. It is at least {speed_up('joint/weak', digits=1)} times as fast as tuned REINFORCE, and "
        f"{speed_up('joint/weak', 'sto', 1)} times as it samples, in {solved('joint/weak')} and "
        f"{solved('joint/weak', 'sto')} of 50 runs. Injection (`conf/pendulum/injection_weak.yaml`) is at least "
        f"{speed_up('injection/weak', digits=2)} times as fast, which shows no speed-up, and "
        f"{speed_up('injection/weak', 'sto', 1)} times as it samples."
    )
    yield f"(`ppo`, with the same settings) solves {solved('ppo/all')} of 50 within its 10,000 steps."
    for arm in ("weighted/all", "shaped/all", "value/all"):
        for mode in ("sust", "sto"):
            _, low, high = summary[arm][mode]["corrected"]
            assert low < 1 < high
    yield (
        "Importance-weighted and LUFFY-shaped injection imitate nothing, and are not shown to be faster than REINFORCE."
    )
    yield "A value baseline is not shown to help REINFORCE here."
    yield (
        "A window of expert steps that are imitated once, without a label buffer, is at least "
        f"{speed_up('window/all', digits=1)} times as fast."
    )
    original = [arm for arm in summary if arm.startswith("original_")]
    assert sum(map(solved, original)) == 1 and sum(summary[arm]["sust"]["seeds"] for arm in original) == 150
    yield "One run in 150 gets there within 50,000 steps"


# ---- RLHF and its alternatives, and judges of steps


@cache
def gains(method, over="true_reward"):
    """What each seed earns more than its start; or than a standard deviation of the start's replies on top."""
    rows = results("rlhf")["rows"]
    starts = {row["seed"]: row for row in rows if row["method"] == "start"}
    spread = over == "spread"
    return [
        row["true_reward"] - starts[row["seed"]]["true_reward"] - spread * starts[row["seed"]]["reward_std"]
        for row in rows
        if row["method"] == method
    ]


def quote(interval, digits=3):
    return f"{interval[0]:.{digits}f} {bounds(*interval[1:], digits)}"


def of_rlhf():
    ppo, true = mean_interval(gains("ppo")), mean_interval(gains("ppo_true"))
    above = [mean_interval(gains(method, "spread")) for method in ("ppo", "ppo_true")]
    assert above[0][1] < 0 < above[1][1]
    yield (
        f"Against the learned reward model PPO gains at least {least(ppo[1])} ({quote(ppo)}), and {least(true[1])} "
        f"against the rule itself (`ppo_true`, {quote(true)}). A standard deviation of the start's replies is "
        f"{about(results('rlhf')['start_std'][0], 3)}. By seed, PPO's gain is not shown to be above it "
        f"({quote(above[0])}), but that of `ppo_true` is ({quote(above[1])})."
    )
    dpo, ties = mean_interval(gains("dpo")), mean_interval(gains("dpo_ties"))
    assert max(dpo[2], ties[2]) > ppo[1]
    yield f"from the ranked replies alone: DPO gains {quote(dpo)} and DPO with ties {quote(ties)}."
    yield f"gains {quote(mean_interval(gains('second_ppo')))} in all."
    yield f"moves far from the start ({results('rlhf')['summary']['rejection']['kl'][0]:.0f} nats)."
    below = {method: sum(gain < -0.02 for gain in gains(method)) for method in results("rlhf")["summary"]}
    assert {method: n for method, n in below.items() if n} == {"rloo": 2, "grpo": 1, "ppo_unleashed": 10}
    yield "RLOO ends below its start on two of ten seeds"
    worst = min(min(gains(m)) for m in below if m not in ("rloo", "grpo", "ppo_unleashed"))
    yield f"Within the budget no other method falls more than {at_most(-worst)} below its start."
    unleashed = results("rlhf")["summary"]["ppo_unleashed"]["true_reward"][0]
    yield f"while the true reward falls to {about(unleashed)} (red)."


def of_judges():
    judges, policies = results("process")["judges"], results("process")["policies"]
    assert judges["outcome"]["best_of_16"][2] < judges["chance"]["best_of_16"][1]
    yield (
        f"As a judge, the process model's best of 16 is right at least {least(judges['process, min']['ahead'][1])} "
        "more often than the outcome model's. The outcome model's is worse than chance:"
    )
    yield (
        "As a reward, the product of the step probabilities, paid once at the end, gains at least "
        f"{least(policies['ppo_product']['gain'][1])}, and a reward at every step gains at least "
        f"{least(policies['ppo_steps']['gain'][1])}. The outcome model gains at least "
        f"{least(policies['ppo_outcome']['gain'][1])}, for the same tokens and optimizer steps."
    )


# ---- learning from what the teacher says


def of_critiques():
    rows = results("feedback_comparison")["rows"]
    sampled = itemgetter("sampled")

    def rows_of(arm):
        return [row for row in rows if row["arm"] == arm]

    def gain(arm, base, of=sampled):
        return figures.gain(figures.paired(rows, arm, base), of)

    revised = [figures.mean(rows_of("start"), itemgetter(f"revised_{kind}"))[0] for kind in figures.KINDS]
    over = [figures.mean(rows_of("start"), figures.over_shuffled(kind))[1] for kind in figures.KINDS]
    placebo = figures.mean(rows_of("start"), itemgetter("revised_placebo_greedy"))[0]
    yield (
        f"A revision earns {about(revised[0])} greedily and {about(revised[1])} sampled, at least {least(over[0])} and "
        f"{least(over[1])} more than after the critique of another reply."
    )
    yield f"a critique that asks for a source, whatever the reply was, makes it {about(placebo)}."
    approved, calls = gain("ilf_approved", "sft_128"), figures.after("feedback_calls", "sampled")
    assert gain("ilf_approved", "pg", calls)[1] < 0 < gain("ilf_approved", "pg", calls)[2]
    ends = [about(figures.mean(rows_of(arm), sampled)[0]) for arm in ("ilf_approved", "sft_128")]
    yield (
        f"ILF that keeps what the critic approves ends at {ends[0]}, at least {least(approved[1])} above SFT on 128 "
        f"expected responses ({ends[1]}). With "
        "as many feedback calls it is not shown to differ from policy gradient, which has scores."
    )
    assert gain("sdpo", "sft_128")[1] < 0 and gain("ilf_unscored", "sft_128")[1] < 0
    yield "SDPO and ILF that keeps every revision are not shown to be above that SFT."
    scored = ("rltf_sd", "critique_grpo", "rlsd", "srpo", "ilf")
    assert all(gain(arm, "pg")[1] < 0 for arm in scored)
    assert [arm for arm in scored if gain(arm, "pg", calls)[2] >= 0] == ["srpo"]
    yield (
        f"At equal tokens none is shown to be above policy gradient (RLTF-SD by {about(gain('rltf_sd', 'pg')[0], 3)}, "
        "within its interval), and at equal calls all but SRPO are below it."
    )
    steps = figures.after("optimizer_steps", "sampled")
    ahead = [least(gain(arm, "pg", steps)[1], 3) for arm in ("rltf_sd", "critique_grpo")]
    yield f"At equal optimizer steps RLTF-SD is at least {ahead[0]} above it and Critique-GRPO {ahead[1]}, but"
    drops = [least(-gain(arm, "ilf")[2]) for arm in ("ilf_placebo", "ilf_shuffled")]
    yield f"With a placebo ILF ends at least {drops[0]} lower, and with shuffled critiques at least {drops[1]}."
    facts = [about(figures.mean(rows_of(arm), itemgetter("facts_sampled"))[0]) for arm in ("coh", "start")]
    yield f"but loses facts ({facts[0]} of .5; the start has {facts[1]})"


def of_expected_responses():
    rows = results("feedback_convergence")["rows"]
    sampled, greedy = itemgetter("sampled"), itemgetter("greedy")

    def end(arm, of=sampled):
        return about(figures.mean([row for row in rows if row["arm"] == arm], of)[0], 3)

    def gain(arm, base, of=sampled):
        return figures.gain(figures.paired(rows, arm, base), of)

    def tokens(arm, kind, threshold):
        until = partial(figures.crossing, kind=kind, threshold=threshold)
        return figures.ratio(figures.paired(rows, arm, "pg"), until)

    def middle(arm):
        crossings = sorted(figures.crossing(row, "sampled", 0.85) for row in rows if row["arm"] == arm)
        return crossings[(len(crossings) - 1) // 2] / 1000

    yield f"SFT on them ends at {end('sft_all')}, greedily at {end('sft_all', greedy)}, and samples nothing."
    assert gain("sft_all", "joint_all", greedy)[1] > 0 and abs(gain("sft_all", "joint_all")[0]) < 0.005
    yield (
        f"The joint objective ends as high when it samples ({end('joint_all')}) and lower greedily "
        f"({end('joint_all', greedy)}). It is at least {least(gain('joint_all', 'pg')[1], 3)} above policy gradient, "
        f"and needs {about(tokens('joint_all', 'greedy', 0.9)[0])} of its tokens to .9 greedily, "
        f"{at_most(tokens('joint_all', 'greedy', 0.9)[2])} at most."
    )
    with_128 = tokens("joint_128", "sampled", 0.85)
    yield (
        f"The joint objective takes {about(with_128[0])} of policy gradient's tokens to .85 in the median, "
        f"{middle('joint_128'):.0f}k instead of {middle('pg'):.0f}k. But the interval reaches {at_most(with_128[2])},"
    )
    assert gain("joint_128", "pg")[1] < 0
    yield "It is not shown to end higher."
    few, below = gain("joint_32", "sft_32"), gain("joint_32", "pg")
    yield (
        f"With 32 the joint objective ends at least {least(few[1], 3)} above SFT on them, and {least(-below[2], 3)} to "
        f"{at_most(-below[1], 3)} below policy gradient, which uses none."
    )
    slower = [least(tokens(arm, "sampled", 0.85)[1]) for arm in ("injection_weighted_128", "rejection")]
    yield f"Weighted by importance it takes at least {slower[0]} times its tokens, and rejection sampling"
    yield f"and rejection sampling takes at least {slower[1]} times."
    injected = [row["arm"] for row in rows if row["arm"].startswith("injection")]
    assert all(tokens(arm, "sampled", 0.85)[2] >= 1 for arm in set(injected))
    yield "Injection is not shown to be faster than policy gradient in any form"
    assert all(gain(f"dpo_{n}", f"sft_{n}")[2] < 0 for n in ("all", "128", "32"))
    yield "DPO of expected responses above the start's own answers ends below SFT on the same responses"


# ---- speed


def of_throughput():
    claims = {claim["title"]: claim for claim in results("throughput")["claims"]}

    def low(title):
        return claims[title]["low"]

    lean = min(low(f"REINFORCE ÷ the peer's fastest mode (lean), {cores}") for cores in ("one core", "two cores"))
    equal = least(low("our PPO with the default's sizes ÷ it, one core"), 1)
    yield (
        f"It is at least {least(lean, 1)} times as fast as the peer in its leanest mode, which also uses envpool and "
        f"one gradient step. At equal sizes PPO here is at least {equal} times as fast as the peer's."
    )


SECTIONS = (of_speed_ups, of_rlhf, of_judges, of_critiques, of_expected_responses, of_throughput)
CLAIMS = [sentence for section in SECTIONS for sentence in section()]


@pytest.mark.parametrize("sentence", CLAIMS, ids=lambda text: re.sub(r"\W+", "-", text)[:40])
def test_a_sentence_says_what_was_measured(sentence):
    assert sentence in EVIDENCE


def test_no_sentence_claims_a_bound_that_is_not_measured_here():
    lines = [line.strip() for page in PAGES for line in page.read_text().splitlines()]
    prose = " ".join(line for line in lines if line[:1] not in "|#`" or not line)
    bounds_in_prose = re.findall(r"at least \.?\d[\d.]*\d|at least \d+", prose)
    assert len(bounds_in_prose) > 15
    claimed = " ".join(CLAIMS)
    assert [bound for bound in sorted(set(bounds_in_prose)) if bound not in claimed] == []


BOUND = re.compile(r"at least (?:\.?\d[\d.]*\d|\d+)")
INTERVAL = re.compile(r"-?\d[\d.,]* \[-?\d[\d.,]*, -?\d[\d.,]*\]")


def unheld(text):
    """The bounds and intervals of a page that are in none of the sentences above, nor a line of a results file."""
    prose = " ".join(line.strip() for line in text.replace("**", "").splitlines() if line[:1] not in "|#" or not line)
    measured = " ".join(path.read_text() for path in (ROOT / "benchmarks/results").glob("*.md"))
    sentences = [match.span() for claim in CLAIMS for match in re.finditer(re.escape(claim.rstrip(".:,")), prose)]
    figures = [*BOUND.finditer(prose), *(x for x in INTERVAL.finditer(prose) if x[0] not in measured)]
    return [x[0] for x in figures if not any(first <= x.start() and x.end() <= last for first, last in sentences)]


@pytest.mark.parametrize("page", sorted((ROOT / "docs/methods").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_of_methods_quotes_sentences_that_say_what_was_measured(page):
    assert unheld(page.read_text()) == []


def test_a_figure_of_a_sentence_that_nobody_holds_is_found():
    sentence = next(sentence for sentence in CLAIMS if BOUND.search(sentence))
    assert unheld(sentence) == []
    assert unheld(f"{sentence} It is at least 77 times as fast, by 7.770 [7.700, 7.777].") == [
        "at least 77",
        "7.770 [7.700, 7.777]",
    ]


def test_a_bound_is_rounded_to_the_weaker_claim():
    """15.65 is at least 15 and at most 16; what is whole stays whole, whatever binary makes of it."""
    assert (rounded_down(15.65), rounded_up(15.65), rounded_up(1.0), rounded_down(0.3 / 0.1)) == ("15", "16", "1", "3")
    assert (least(0.1835), at_most(0.1835), rounded_down(-0.0346, 3), rounded_up(-0.0041, 2)) == (
        ".18",
        ".19",
        "-0.035",
        "0.00",
    )
    assert rounded_up(math.inf) == "∞" and rounded_down(1234.9) == "1,234"
