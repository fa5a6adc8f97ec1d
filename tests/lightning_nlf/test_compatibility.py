"""Combinations of mixins: every pair is refused with both names, or trains one step."""

import inspect

import pytest
import torch

from lightning_nlf import objectives
from lightning_nlf.compatibility import replaceable
from lightning_nlf.example_batch import example_batch
from lightning_nlf.modules import ObjectiveModule, PolicyModule
from lightning_nlf.networks import GRUPolicy, GRUReward, GRUValue
from lightning_nlf.objective import HOOKS, Objective, Term
from lightning_nlf.rewards.preference_module import PreferenceModule
from lightning_nlf.rewards.reward_module import RewardModule

NETWORKS = {"policy": GRUPolicy, "value": GRUValue, "reward": GRUReward}
KNOBS = {"threshold": 0.5, "divergence": "forward", "kl_weight": 0.1, "normalize_advantages": False}


def is_mixin(cls):
    return inspect.isclass(cls) and issubclass(cls, Objective) and not issubclass(cls, ObjectiveModule)


def exported_mixins():
    """The mixins of exported classes, except those for actions that are not tokens."""
    exported = [cls for cls in vars(objectives).values() if inspect.isclass(cls) and issubclass(cls, ObjectiveModule)]
    mixins = {base for cls in exported for base in cls.__bases__ if is_mixin(base)}
    return sorted((cls for cls in mixins if cls.__name__ != "QObjective"), key=lambda cls: cls.__name__)


MIXINS = exported_mixins()


def with_needed(*mixins):
    """The mixins with everything that they need, each before what it needs; the module is last."""
    needed = list(mixins)
    for mixin in needed:
        needed += [cls for base in mixin.__mro__ for cls in vars(base).get("needs", ()) if cls not in needed]
    order = sorted(
        (cls for cls in needed if not any(cls is not rest and issubclass(rest, cls) for rest in needed)),
        key=lambda cls: (issubclass(cls, ObjectiveModule), -depth(cls)),
    )
    return tuple(order)


def depth(mixin):
    """Length of the longest chain of needs that starts here."""
    below = [cls for base in mixin.__mro__ for cls in vars(base).get("needs", ())]
    return 1 + max(map(depth, below), default=0)


def knobs(mixin):
    """Names of the parameters of all its `__init__` methods."""
    inits = [vars(cls)["__init__"] for cls in mixin.__mro__ if is_mixin(cls) and "__init__" in vars(cls)]
    return {
        p.name for init in inits for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD
    }


def defined(mixin):
    """Names that its classes define, without hooks."""
    names = {name for cls in mixin.__mro__ if is_mixin(cls) and cls is not Objective for name in vars(cls)}
    return {name for name in names - set(HOOKS) - {"needs", "reports", "best", "feedback"} if not name.startswith("__")}


def shared_names(a, b):
    """Names that both mixins define themselves, not through a common base."""
    bases = [cls for cls in a.__mro__ if cls in b.__mro__ and is_mixin(cls) and cls is not Objective]
    shared = {name for base in bases for name in defined(base) | knobs(base)}
    if issubclass(a, b) or issubclass(b, a):
        return set()
    names = (defined(a) & defined(b)) | (knobs(a) & knobs(b)) - {"self"}
    return names - shared if bases else names


def composed(*mixins):
    cls = type("Composed", with_needed(*mixins), {})
    expected = set().union(*(knobs(base) for base in cls.__mro__ if is_mixin(base)))
    roles = {name: NETWORKS[name](16, 8) for name in ("value",) if name in expected}
    roles |= {"policy": GRUPolicy(16, 8)} if issubclass(cls, PolicyModule) else {"reward": GRUReward(16, 8)}
    return cls(**roles, **{name: x for name, x in KNOBS.items() if name in expected})


def refusal(*mixins):
    try:
        composed(*mixins)
    except TypeError as error:
        return str(error)
    return ""


def test_there_are_mixins_of_every_family():
    names = {cls.__name__ for cls in MIXINS}
    assert {
        "PolicyGradientObjective",
        "ImitationObjective",
        "DPOObjective",
        "RaoKupperObjective",
        "SDPOObjective",
    } <= names
    assert len(names) >= 35


@pytest.mark.parametrize("mixin", MIXINS, ids=lambda cls: cls.__name__)
def test_each_with_what_it_needs_trains_one_step(mixin):
    trains_one_step(mixin)


def trains_one_step(*mixins):
    torch.manual_seed(0)
    module = composed(*mixins)
    policy = isinstance(module, PolicyModule)
    batch = example_batch(module.policy if policy else module.reward, module.policy if policy else None)
    with torch.no_grad():  # no longer the reference, or the teacher
        for p in module.parameters():
            p += 0.1 * torch.randn_like(p)
    prepared = module.prepare(batch)
    module.train()
    losses = module.losses(prepared)
    if not losses:  # without a loss: needed by other mixins
        assert {mixin.__name__ for mixin in mixins} <= {"ReferenceObjective", "TeacherObjective"}
        return
    loss = sum(losses.values())
    loss.backward()
    norms = [p.grad.norm() for p in module.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and all(torch.isfinite(norm) for norm in norms) and sum(norms) > 0
    module.advance_all()


@pytest.mark.parametrize("left", MIXINS, ids=lambda cls: cls.__name__)
def test_every_pair_is_refused_by_name_or_trains_one_step(left):
    for partner in MIXINS[MIXINS.index(left) + 1 :]:
        message = refusal(left, partner)
        if message:
            assert message.startswith("Composed: ")
            names = [cls.__name__ for cls in (*with_needed(left, partner), *left.__mro__, *partner.__mro__)]
            assert sum(name in message for name in set(names)) >= 2, message
        else:
            assert not shared_names(left, partner) - REPLACED, (left, partner)
            trains_one_step(left, partner)


REPLACED = {"estimate", "learned_steps", "taught"}  # a mixin to the left may replace these


def test_one_knob_with_two_meanings_is_refused():
    """β of DPO and of the KL penalty; `divergence` of imitation and of distillation."""
    for a, b, name in [
        ("DPOObjective", "KLPenaltyObjective", "beta"),
        ("ImitationObjective", "SDPOObjective", "divergence"),
        ("SLiCObjective", "SimPOObjective", "margin"),
        ("KTOObjective", "UnlikelihoodObjective", "threshold"),
    ]:
        mixins = {cls.__name__: cls for cls in MIXINS}
        message = refusal(mixins[a], mixins[b])
        assert f"`{name}`" in message and a in message and b in message


def test_what_the_documentation_combines_is_not_refused():
    """Combinations in the README and in the exported classes, and other plausible ones."""
    mixins = {cls.__name__: cls for cls in MIXINS}
    for names in (
        "ImitationObjective PolicyGradientObjective",
        "ImitationObjective ValueObjective",
        "ImitationObjective DPOObjective",
        "ImitationObjective KLPenaltyObjective",
        "ShapedInjectionObjective ValueObjective",
        "WeightedInjectionObjective KLLossObjective",
        "FilteredImitationObjective ValueObjective",
        "KLPenaltyObjective KLLossObjective",
        "AWRObjective ValueObjective",
        "FirstTurnObjective PolicyGradientObjective",
    ):
        trains_one_step(*(mixins[name] for name in names.split()))


def test_what_is_missing_is_named():
    from lightning_nlf.objectives.dpo import DPOObjective
    from lightning_nlf.objectives.imitation import ImitationObjective
    from lightning_nlf.objectives.reference import ReferenceObjective

    with pytest.raises(TypeError, match="DPOObjective needs ReferenceObjective"):
        type("Composed", (DPOObjective, PolicyModule), {})
    with pytest.raises(TypeError, match="put ReferenceObjective to the right of DPOObjective"):
        type("Composed", (ReferenceObjective, DPOObjective, PolicyModule), {})
    with pytest.raises(TypeError, match="ImitationObjective needs PolicyModule"):
        type("Composed", (ImitationObjective, RewardModule), {})


class First(Objective):
    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)

    @replaceable
    def formula(self):
        return "default"


class Replaced(Objective):
    def formula(self):
        return "other"


class Weighted(Objective):
    def __init__(self, weight=2.0, **kwargs):
        super().__init__(**kwargs)


def test_a_default_may_be_replaced_by_one_mixin_to_its_left():
    joined = type("Both", (Replaced, First), {})
    assert joined().formula() == "other"
    with pytest.raises(TypeError, match="`formula`"):
        type("Both", (First, Replaced), {})
    with pytest.raises(TypeError, match="cannot combine Weighted and First: both define `weight`"):
        type("Both", (Weighted, First), {})
    assert issubclass(PreferenceModule, RewardModule)


def test_a_hook_that_is_misspelt_is_refused():
    with pytest.raises(TypeError, match=r"Wrong\.shape_reward is not a hook; did you mean `shape_rewards`"):
        type("Wrong", (Objective,), {"shape_reward": lambda self, batch: batch})


def test_one_mask_that_two_mixins_name_is_refused():
    def naming(name, mask):
        return type(name, (Objective,), {"masks": lambda self, batch: batch.with_masks(rare=mask(batch))})

    first, second = naming("One", lambda batch: batch.mask), naming("Other", lambda batch: batch.valid)
    module = type("Made", (first, second, PolicyModule), {})(policy=GRUPolicy(16, 8))
    with pytest.raises(ValueError, match="Other and One both add `rare`"):
        module.prepare(example_batch(module.policy, module.policy))


@pytest.mark.parametrize("name", ["mask", "pairs"])
def test_a_mask_that_every_batch_has_is_not_named_again(name):
    shadow = type("Shadow", (Objective,), {"masks": lambda self, batch: batch.with_masks(**{name: batch.valid})})
    module = type("Made", (shadow, PolicyModule), {})(policy=GRUPolicy(16, 8))
    with pytest.raises(ValueError, match=f"Shadow adds `{name}`"):
        module.prepare(example_batch(module.policy, module.policy))


def test_what_a_hook_must_return_and_a_term_may_name():
    def build(**hooks):
        module = type("Made", (type("Mixin", (Objective,), hooks), PolicyModule), {})(policy=GRUPolicy(16, 8))
        return module, example_batch(module.policy, module.policy)

    module, batch = build(credit=lambda self, batch: None)
    with pytest.raises(TypeError, match=r"Mixin\.credit returned None"):
        module.prepare(batch)
    module, batch = build(terms=lambda self, batch, now: [Term("x", now.log_probs, "nowhere")])
    with pytest.raises(ValueError, match="term x: there is no mask `nowhere`; the masks are mask, expert_mask, valid"):
        module.losses(batch)
    module, batch = build(terms=lambda self, batch, now: [Term("loss", now.log_probs, "mask")])
    with pytest.raises(ValueError, match="two terms are called loss"):
        module.losses(batch)
