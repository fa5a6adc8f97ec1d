"""A snapshot of what every objective makes of fixed rows: the safety net under the rewrite of the objectives.

It is the only snapshot among the tests, and goes when the rewrite ends. It does not say that a number is right, only
that it has not moved. For every yaml below conf/ that trains: its class and its knobs, on tiny networks in float64, on
the rows of `digest_rows.py`, uncut and cut into three micro-batches, two collections with an SGD step between them.
Then the classes and knobs that no yaml has. Only the driver, the first part below, knows the inside of a module: where
the interface of the objectives changes, the driver follows, and the numbers stay.

    PYTHONPATH=. python tests/lightning_nlf/objectives/test_digest.py --write

writes `digest.json` anew, from the root of the repository. A number that moved on purpose is told of in the commit.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
import platform
import runpy
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import GaussianPolicy, GRUPolicy, GRUReward, GRUValue, MLPQValue, MLPValue, ValueHead
from lightning_nlf.objectives.actor_critic import ValueObjective
from lightning_nlf.objectives.filtered_imitation import FilteredImitationObjective
from lightning_nlf.objectives.imitation import ImitationObjective
from lightning_nlf.objectives.injection import ShapedInjectionObjective, WeightedInjectionObjective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FILE = HERE / "digest.json"
ROWS = runpy.run_path(str(HERE / "digest_rows.py"))
WIDTH = 5
NOT_KNOBS = {"policy", "value", "q", "reward", "optimizer", "lr_scheduler", "reference_cache"}
MOVING = ("experience", "average_return", "beta", "gain", "bias")  # buffers, whose names are in checkpoints
FIELDS = ("rewards", "values", "returns", "advantages", "ref_log_probs", "rank")


# ---- the driver: the only part that knows the inside of a module ---------------------------------------------------


@contextmanager
def in_float64():
    """Also where the code asks for float32 by `.float()`: sums in another order must not show."""
    usual, dtype = torch.Tensor.float, torch.get_default_dtype()
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float = usual
        torch.set_default_dtype(dtype)


def prepared(module, batch):
    torch.manual_seed(0)  # Q samples what follows a truncated row
    return module.prepare(batch)


def collection_notes(module):
    """What `prepare` had logged, by name; forgotten then."""
    notes = {name: float(values[-1]) for name, values in module._unlogged.items() if values}
    module._unlogged.clear()
    return notes


def micro_batches(batch, parts):
    totals = {name: count.sum().float() for name, count in row_counts(batch).items()}
    cut = [batch[torch.isin(batch.group, torch.tensor(groups))] for groups in ROWS["PARTS"][parts]]
    return stamp_totals(cut, totals, parts)


def terms_and_notes(module, part, parts):
    """The weighted terms and the notes of one micro-batch of so many, each ()."""
    module._trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=parts) if module.reduce == "sum" else None
    now = module.evaluate(part)
    terms, notes = module.losses(part, now), module.figures(part, now)
    module._trainer = None
    return terms, notes


def held_out(module, rows, loader=0):
    """What an evaluation logs of rows, by name."""
    logged = {}
    module.log = lambda name, x, **_: logged.__setitem__(name, x)
    numbers = {name: x for name, x in rows.extra.items() if x.ndim == 1 and x.is_floating_point()}
    with torch.no_grad():
        module.eval()
        module.assess("val", replace(rows, metrics=numbers), loader)
    values = {name: float(x.compute() if hasattr(x, "compute") else x) for name, x in logged.items()}
    for x in logged.values():
        if hasattr(x, "reset"):
            x.reset()
    return values


def paid(module, rows):
    """What a reward module pays for rows once an epoch is over, at each of its steps (N,)."""
    steps = module.read_steps(module._run("masks", rows))
    module.on_validation_start()
    return module.judge(rows, steps)[steps]


def let_time_pass(module, steps):
    module.experience += steps


# ---- modules -------------------------------------------------------------------------------------------------------


def trains(config):
    model = config.get("model") or {}
    return "class_path" in model and "optimizer" in model.get("init_args", {})


@functools.cache
def models():
    """What is digested, by its name: the yamls that train, by their path; then what no yaml turns."""
    paths = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.glob("conf/**/*.yaml"))}
    read = {name: yaml.safe_load(path.read_text()) or {} for name, path in paths.items()}
    return {name: config["model"] for name, config in read.items() if trains(config)} | unturned()


def unturned():
    """Classes and knobs that stand in no yaml, by class and knobs."""
    models = {}
    for networks, classes in NO_YAML.items():
        for name, knobs in classes:
            roles = {role: {"class_path": kind} for role, kind in NETWORKS[networks].items()}
            told = " ".join(f"{knob}={'linear' if isinstance(x, dict) else x}" for knob, x in knobs.items())
            models[f"{name} {networks} {told}".strip()] = {
                "class_path": f"lightning_nlf.objectives.{name}",
                "init_args": roles | knobs,
            }
    return models


def built_of(spec):
    """A schedule, or any other thing with a class_path."""
    module, name = spec["class_path"].rsplit(".", 1)
    return (MADE_HERE.get(name) or getattr(importlib.import_module(module), name))(**spec.get("init_args", {}))


class WeightedInjectionAgent(WeightedInjectionObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    pass


class ShapedInjectionAgent(ShapedInjectionObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    pass


class FilteredJointAgent(
    FilteredImitationObjective, ImitationObjective, ValueObjective, PolicyGradientObjective, PolicyModule
):
    pass


# classes that were exported once, and that anybody can make of the mixins
MADE_HERE = {cls.__name__: cls for cls in (WeightedInjectionAgent, ShapedInjectionAgent, FilteredJointAgent)}


def filled(network, phase, size):
    """With weights by arithmetic."""
    with torch.no_grad():
        for p in network.parameters():
            phase += 1.0
            p.copy_(size * torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 1.7 + phase).view(p.shape))
    return network


def nudged(network, size=0.1):
    with torch.no_grad():
        for p in network.parameters():
            p += size * torch.cos(torch.arange(p.numel(), dtype=torch.float64) * 2.3).view(p.shape)


def is_control(model):
    return "Gaussian" in model["init_args"].get("policy", {}).get("class_path", "")


def networks_of(model):
    obs, action, vocabulary = ROWS["OBS"], ROWS["ACTION"], ROWS["VOCABULARY"]
    control = is_control(model)
    kinds = {
        "policy": lambda: GaussianPolicy(obs, action, [WIDTH]) if control else GRUPolicy(vocabulary, WIDTH),
        "value": lambda: MLPValue(obs, [WIDTH]) if control else GRUValue(vocabulary, WIDTH),
        "q": lambda: MLPQValue(obs, action, [WIDTH]),
        "reward": lambda: GRUReward(vocabulary, WIDTH),
    }
    given = [name for name in kinds if name in model["init_args"]]
    networks = {name: kinds[name]() for name in given}
    if model["init_args"].get("value", {}).get("class_path", "").endswith("ValueHead"):
        networks["value"] = ValueHead(WIDTH)
    size = 0.5 if control else 1.2
    return {name: filled(network, phase, size) for phase, (name, network) in enumerate(networks.items(), 10)}


def as_acted(model, rows):
    """With log-probabilities near those of the policy as it was built, where there are any."""
    if rows.log_probs is None:
        return rows
    with torch.no_grad():
        said = networks_of(model)["policy"](rows.obs).log_prob(rows.actions)
    return replace(rows, log_probs=(said + 0.15 * ROWS["wave"](*said.shape, phase=0.6)) * rows.valid)


def built(model):
    knobs = {name: x for name, x in model["init_args"].items() if name not in NOT_KNOBS}
    knobs = {name: built_of(x) if isinstance(x, dict) and "class_path" in x else x for name, x in knobs.items()}
    module = built_of({"class_path": model["class_path"], "init_args": networks_of(model) | knobs})
    for name, network in module.named_children():
        if name in ("policy", "reward", "tie"):  # so that the policy is not the reference or the teacher
            nudged(network)
    return module


NETWORKS = {
    "control": {"policy": "GaussianPolicy"},
    "control agent": {"policy": "GaussianPolicy", "value": "MLPValue"},
    "text": {"policy": "GRUPolicy"},
    "text agent": {"policy": "GRUPolicy", "value": "ValueHead"},
    "reward": {"reward": "GRUReward"},
}
LINEAR = {"class_path": "lightning_nlf.maths.Linear", "init_args": {"start": 1.0, "end": 0.0, "over": 8000}}
GROUPED = {"baseline": "group_mean", "normalize_advantages": False}
NO_YAML = {
    "control": [
        ("ReinforcePolicy", {"cut_at_takeover": True, "entropy_weight": 0.1, "baseline": "batch_mean"}),
        ("UnweightedInjectionPolicy", {"injected_weight": LINEAR}),
        ("ImitationPolicy", {"divergence": "reverse", "imitation_weight": 0.3}),
        ("JointPolicy", {"divergence": "reverse", "suffix_temperature": 0.5}),
        ("JointPolicy", {"until_return": -0.3}),
        ("JointPolicy", {"until_return": 5.0}),
        ("SummedJointPolicy", {"entropy_weight": 0.1, "clip": 0.2}),
    ],
    "control agent": [
        ("ActorCriticAgent", {"cut_at_takeover": True, "value_clip": 0.1, "entropy_weight": 0.1}),
        ("WeightedInjectionAgent", {"cut_at_takeover": True, "injected_weight": LINEAR}),
        ("ShapedInjectionAgent", {"clip": 0.2}),
        ("FilteredJointAgent", {"divergence": "forward"}),
        ("AWRAgent", {"temperature": 0.5}),
    ],
    "text": [
        ("ImitationPolicy", {"divergence": "jsd"}),
        ("JointPolicy", {"divergence": "reverse", "suffix_temperature": 0.5}),
        ("ReinforcePolicy", {"baseline": "shared_group_mean", "advantage_scale": "group_std", "clip": 0.2}),
        ("RWRPolicy", {"normalize_advantages": True, "baseline": "leave_one_out"}),
        ("RLHFPolicy", {"kl_target": 0.2, "kl_estimator": "k3", "kl_weight": 0.2, "kl_loss_estimator": "k2"}),
        ("RLHFPolicy", {"kl_estimator": "k2", "whiten_rewards": True, "reward_clip": 0.5}),
        ("OneStepRLHFPolicy", {"clip": 0.2, "entropy_weight": 0.1, "kl_weight": 0.1, "kl_target": 0.5}),
        ("RaoKupperDPOPolicy", {"learn_tie": False, "expected_first": True}),
        ("KTOPolicy", {"desirable_weight": 1.5, "undesirable_weight": 0.5}),
        ("UnlikelihoodPolicy", {}),
        ("SimPOPolicy", {"chosen_weight": 0.5}),
        ("CritiqueGRPOPolicy", {"clip": 0.2, "normalize_advantages": True, "injected_weight": LINEAR}),
        ("FirstTurnPolicy", GROUPED | {"floor": -2.4, "clip": 0.2}),
        ("SRPOPolicy", GROUPED | {"clip": 0.2, "entropy_beta": 0.0}),
        ("RLSDPolicy", GROUPED | {"clip": 0.2, "teacher_rate": 0.0, "evidence_weight": 0.7}),
        ("RejectionSamplingPolicy", {"divergence": "nll", "top": 0.5, "above": 0.25}),
        ("MixedFeedbackPolicy", {"divergence": "nll", "entropy_weight": 0.1, "expected_first": True}),
    ],
    "text agent": [
        ("RLHFAgent", {"kl_weight": 0.1, "entropy_weight": 0.1, "whiten_rewards": True, "cut_at_takeover": True}),
        ("JointAgent", {"divergence": "nll"}),
        ("AWRAgent", {}),
    ],
    "reward": [
        ("StepValueReward", {}),
        ("RaoKupperReward", {"learn_tie": False, "normalize": 5}),
        ("BradleyTerryReward", {"normalize": 0}),
    ],
}


# ---- which rows for which class ------------------------------------------------------------------------------------

PREFERENCES = (("ranked", "ranked_in_full", "ranked_rollout"), ("ranked",))  # learned from; held out
LABELS, PLAYED = (("ranked", "ranked_in_full"), ("ranked",)), (("rollout", "parted", "injected"), ())
INJECTED, JUDGED = (("injected", "expected"), ()), (("judged",), ("judged",))
TEXT = {
    "ImitationPolicy": (("injected", "demonstrations", "rounds"), ("demonstrations",)),
    "JointPolicy": (("injected", "expected", "rounds"), ("demonstrations",)),
    "JointAgent": (("injected", "expected"), ("demonstrations",)),
    "InjectionPolicy": (("injected", "expected"), ("demonstrations",)),
    "FilteredJointPolicy": (("injected", "expected"), ("demonstrations",)),
    "ShapedInjectionPolicy": INJECTED,
    "WeightedInjectionPolicy": INJECTED,
    "ReinforcePolicy": PLAYED,
    "ActorCriticAgent": PLAYED,
    "RLHFPolicy": PLAYED,
    "RLHFAgent": PLAYED,
    "OneStepRLHFPolicy": PLAYED,
    "AWRAgent": (("rollout", "parted", "scored"), ()),
    "RWRPolicy": (("rollout", "parted", "scored"), ()),
    "C3POPolicy": LABELS,
    "MixedFeedbackPolicy": (("mixed",), ("mixed",)),
    "CritiqueGRPOPolicy": (("rounds",), ()),
    "FirstTurnPolicy": (("rounds",), ()),
    "SDPOPolicy": (("viewed", "rounds"), ()),
    "SRPOPolicy": (("viewed", "rounds"), ()),
    "RLSDPolicy": (("viewed", "rounds"), ()),
    "RejectionSamplingPolicy": (("rollout", "expected", "ranked"), ("demonstrations",)),
    "KTOPolicy": LABELS,
    "UnlikelihoodPolicy": LABELS,
    "RaoKupperReward": JUDGED,
    "DavidsonReward": JUDGED,
    "BradleyTerryReward": JUDGED,
    "PlackettLuceReward": JUDGED,
    "SoftPreferenceReward": JUDGED,
    "ProcessReward": (("step_labels",), ("step_labels",)),
    "StepValueReward": (("step_labels",), ("step_labels",)),
    "OutcomeReward": (("outcomes",), ("outcomes",)),
}
CONTROL = {
    "ImitationPolicy": (("taken_over", "demonstrated"), ("demonstrated",)),
    "JointPolicy": (("taken_over", "played"), ("demonstrated",)),
    "SummedJointPolicy": (("taken_over", "played"), ("demonstrated",)),
    "JointAgent": (("taken_over", "played"), ("demonstrated",)),
    "InjectionPolicy": (("taken_over", "played"), ("demonstrated",)),
    "InjectionAgent": (("taken_over", "played"), ("demonstrated",)),
    "FilteredJointAgent": (("taken_over", "played"), ("demonstrated",)),
}


def rows_for(model):
    """The names of the batches that the class learns from, and of those that it is measured on."""
    name = model["class_path"].rsplit(".", 1)[1]
    if is_control(model):
        return CONTROL.get(name, (("played", "taken_over"), ()))
    return TEXT.get(name, PREFERENCES)


# ---- the digest ----------------------------------------------------------------------------------------------------


def weighted_sums(x):
    """Σ x and Σ x cos(index)."""
    weights = torch.arange(x.numel(), dtype=torch.float64).cos().view(x.shape)
    return [float(x.double().sum()), float((x * weights).sum())]


def field_numbers(batch):
    """`weighted_sums` of the prepared fields, over the steps that somebody decided."""
    steps = batch.valid if batch.expert_mask is None else batch.valid | batch.expert_mask
    digest = {}
    for name in FIELDS:
        x = getattr(batch, name)
        if x is not None:
            digest[name] = weighted_sums(torch.where(steps, x, 0) if x.ndim > 1 else x)
    return digest


def gradient_norms(module):
    norms = {}
    for name, network in module.named_children():
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        if gradients:
            norms[name] = float(torch.cat(gradients).norm())
    return {"total": math.sqrt(sum(norm**2 for norm in norms.values()))} | norms


def cut_numbers(module, batch, parts):
    """Terms, notes and gradient norms of one optimizer step in so many micro-batches; the gradient stays."""
    module.zero_grad()
    module.train()
    digest = {"terms": {}, "notes": {}}
    for part in micro_batches(batch, parts):
        terms, notes = terms_and_notes(module, part, parts)
        (sum(terms.values()) / parts).backward()
        for kind, values in (("terms", terms), ("notes", notes)):
            for name, x in values.items():
                digest[kind][name] = digest[kind].get(name, 0.0) + float(x.detach()) / parts
    return digest | {"gradient": gradient_norms(module)}


def collection_numbers(module, rows):
    """One collection, one SGD step."""
    batch = prepared(module, rows)
    digest = {"fields": field_numbers(batch), "collection": collection_notes(module)}
    for parts in (3, 1):
        digest[f"in {parts}"] = cut_numbers(module, batch, parts)
    with torch.no_grad():
        for p in module.parameters():
            if p.grad is not None:
                p -= 0.05 * p.grad / max(1.0, digest["in 1"]["gradient"]["total"])
    module.advance_all()
    let_time_pass(module, 5000)
    return digest | {"moving": {name: float(x) for name, x in module.named_buffers() if name in MOVING}}


def rewarded(name, round_):
    """The rows; in a second round they earn less, so that averages over collections move."""
    rows = ROWS[name]()
    return rows if rows.rewards is None else replace(rows, rewards=rows.rewards * (1.0, 0.7)[round_ - 1])


def digest_of(model):
    learned, measured = rows_for(model)
    digest = {}
    with in_float64():
        for name in learned:
            module = built(model)
            for round_ in (1, 2):
                digest[f"{name}, round {round_}"] = collection_numbers(module, as_acted(model, rewarded(name, round_)))
            if hasattr(module, "judge"):
                digest[f"{name}, paid"] = weighted_sums(paid(module, ROWS[name]()))
        for name in measured:
            rows = ROWS[name]()
            if "Reward" not in model["class_path"]:
                rows = replace(rows, rewards=None)
            digest[f"{name}, held out"] = held_out(built(model), rows)
        if "parted" in learned or "viewed" in learned:
            digest["rollout, evaluated"] = held_out(built(model), as_acted(model, ROWS["rollout"]()), 1)
    return flat(digest)


def flat(digest):
    """{"a": {"b": 1}} → {"a / b": 1}"""
    numbers = {}
    for name, x in digest.items():
        if isinstance(x, dict):
            numbers |= {f"{name} / {key}": y for key, y in flat(x).items()}
        elif isinstance(x, list):
            numbers |= flat({f"{name} / {i}": y for i, y in enumerate(x)})
        else:
            numbers[name] = float(f"{x:.13g}")
    return numbers


# ---- the test ------------------------------------------------------------------------------------------------------


def machine():
    """Of this kind of processor and this torch, beside another of which the last bits may differ."""
    cpu = Path("/proc/cpuinfo")
    model = (
        next((line for line in cpu.read_text().splitlines() if line.startswith("model name")), "")
        if cpu.exists()
        else ""
    )
    return hashlib.sha256(f"{model} {platform.machine()} {torch.__version__}".encode()).hexdigest()[:12]


@functools.cache
def recorded():
    content = json.loads(FILE.read_text())
    tables, names = content["digests"], content["models"]
    return content["machine"], {name: tables[i] for name, i in names.items()}


def unweighted(model, digest):
    """Held-out rows are logged without the weight of their term now."""
    weights = {f"val/{knob[:-7]}": x for knob, x in model["init_args"].items() if knob.endswith("_weight")}
    terms = ("val/critique", "val/unlikelihood")
    return {
        name: x / weights.get(term, 1.0) if "held out" in name and (term := name.split(" / ")[-1]) in terms else x
        for name, x in digest.items()
    }


def differences(was, now, tolerance):
    """What moved, one line each."""
    lines = [f"{name}: gone" for name in was.keys() - now.keys()]
    lines += [f"{name}: new" for name in now.keys() - was.keys() if "held out" not in name and "notes" not in name]
    for name in was.keys() & now.keys():
        if now[name] != pytest.approx(was[name], rel=tolerance, abs=tolerance / 100, nan_ok=True):
            lines.append(f"{name}: {was[name]} → {now[name]}")
    return sorted(lines)


@pytest.mark.parametrize("name", models())
def test_nothing_has_moved(name):
    made_on, digests = recorded()
    model = models()[name]
    tolerance = 1e-9 if made_on == machine() else 1e-6
    if name.startswith(("conf/original/", "Summed")):
        tolerance = 1e-6  # 1/parts was kept in float32
    moved = differences(unweighted(model, digests[name]), digest_of(model), tolerance)
    assert not moved, "\n".join(moved)


def test_every_digest_has_its_yaml():
    assert recorded()[1].keys() == models().keys()


def write():
    """Equal digests are kept once."""
    tables, names = [], {}
    for name, model in models().items():
        digest = digest_of(model)
        if digest not in tables:
            tables.append(digest)
        names[name] = tables.index(digest)
    content = {"machine": machine(), "models": names, "digests": tables}
    FILE.write_text(json.dumps(content, indent=0) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/lightning_nlf/objectives/test_digest.py --write")
    torch.set_num_threads(1)
    write()
