"""Each critique method learns on a chat template with every critic: the policy, a model with another tokenizer, an
endpoint, or a file of people's critiques.
"""

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")
pytest.importorskip("openai")

from data_modules.feedback import FileCritic  # noqa: E402
from data_modules.feedback.providers import EndpointCritic  # noqa: E402
from data_modules.text import ModelCritic, PromptFile, TextDataModule  # noqa: E402
from data_modules.text.expected import ExpectedResponses  # noqa: E402
from lightning_nlf.experts import PolicyTextExpert  # noqa: E402
from lightning_nlf.objectives import (  # noqa: E402
    C3POPolicy,
    CritiqueGRPOPolicy,
    FirstTurnPolicy,
    ImitationPolicy,
    JointPolicy,
    RLSDPolicy,
    SDPOPolicy,
    SRPOPolicy,
    UnweightedInjectionPolicy,
)
from tests.data_modules.text import own_prompts  # noqa: E402
from tests.data_modules.text.own_prompts import CRITIQUE, QUESTIONS, Payer  # noqa: E402

NLL, PAID = {"divergence": "nll"}, {"reward": Payer()}
GROUP = {"baseline": "group_mean", "normalize_advantages": False}
METHODS = {
    "ilf": (ImitationPolicy, NLL, {"learn": ["revisions"], "keep": "best", "revisions": 2} | PAID),
    "ilf_approved": (ImitationPolicy, NLL, {"learn": ["revisions"], "keep": "approved"}),
    "rltf_sd": (FirstTurnPolicy, GROUP | {"floor": -20.0}, {"learn": ["attempts", "revisions"]} | PAID),
    "rltf_fm": (JointPolicy, GROUP | NLL, {"learn": ["attempts", "critiques"]} | PAID),
    "critique_grpo": (CritiqueGRPOPolicy, {}, {"learn": ["attempts", "revisions"]} | PAID),
    "sdpo": (SDPOPolicy, {}, {"learn": ["attempts"]}),
    "srpo": (SRPOPolicy, GROUP | {"success": 1.0}, {"learn": ["attempts"]} | PAID),
    "rlsd": (RLSDPolicy, GROUP, {"learn": ["attempts"]} | PAID),
    "cft": (ImitationPolicy, NLL, {"learn": ["critiques"]}),
    "coh": (ImitationPolicy, NLL, {"learn": ["hindsight"]}),
    "fcp": (ImitationPolicy, NLL, {"learn": ["conditioned"]}),
    "c3po": (C3POPolicy, NLL, {"learn": ["pairs", "anchors"], "scope": {"kind": "a"}, "prompts": 4}),
}
SCORED = [name for name, (_, _, knobs) in METHODS.items() if "reward" in knobs]
KINDS = ["policy", "model", "endpoint", "file"]
# One attempt is a group of its own in a file: a mean of the group leaves nothing of it. Nobody criticises a revision.
ALONE, UNASKED = {"rlsd"}, {"ilf_approved"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def tokenizer(place):
    return own_prompts.tokenizer(place)


@pytest.fixture
def critic_of(place, server, endpoint):
    def make(kind):
        if kind == "policy":
            return ModelCritic(max_new=6, temperature=1.0)
        if kind == "model":
            tokenizer_of_model = own_prompts.tokenizer(place, "phi")
            return ModelCritic(
                PolicyTextExpert(own_prompts.policy(tokenizer_of_model, 1)), tokenizer_of_model, max_new=6
            )
        if kind == "endpoint":
            server.answer = lambda body: server.chat(CRITIQUE)
            return EndpointCritic(endpoint())
        criticised = [{"prompt": text, "responses": ["want", "I"], "critique": [CRITIQUE, "no"]} for text in QUESTIONS]
        return FileCritic(own_prompts.lines(place / "people.jsonl", criticised))

    return make


class Lenient:
    """Critic that criticises attempts but approves every revision."""

    def __init__(self, critic):
        self.critic, self.counters, self.calls = critic, critic.counters, 0

    def critiques(self, *arguments):
        self.calls += 1
        critiques = self.critic.critiques(*arguments)
        return critiques if self.calls == 1 else [None] * len(critiques)


def fit_once(agent, data, seed=0):
    """Run a collection and an optimizer step. Returns the batch, the losses, and whether any weight changed."""
    batch = agent.prepare(data.collect(agent, np.random.default_rng(seed)))
    (part,) = data.cut(batch, np.random.default_rng(0))
    losses = agent.losses(part)
    before = [p.clone() for p in agent.policy.parameters()]
    agent.train()
    sum(losses.values()).backward()
    torch.optim.SGD(agent.policy.parameters(), 1.0).step()
    moved = any(not torch.equal(p, old) for p, old in zip(agent.policy.parameters(), before, strict=True))
    return batch, losses, moved


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_every_critic(place, tokenizer, critic_of, method, kind):
    if kind == "file" and method in UNASKED:
        pytest.skip("a file does not criticise revisions")
    cls, settings, knobs = METHODS[method]
    start = own_prompts.policy(tokenizer)
    if method == "c3po":
        knobs = knobs | {"reviser": PolicyTextExpert(own_prompts.policy(tokenizer, 2))}
    critic = Lenient(critic_of(kind)) if method == "ilf_approved" else critic_of(kind)
    data = own_prompts.module(place, critic=critic, **knobs)
    agent = cls(policy=start, **settings)
    batch, losses, moved = fit_once(agent, data)
    assert batch.valid.any() and all(loss.isfinite() for loss in losses.values())
    assert moved or (kind == "file" and method in ALONE)


@pytest.mark.parametrize("method", SCORED)
def test_a_method_that_needs_a_score_says_that_nobody_pays(place, tokenizer, method):
    cls, settings, knobs = METHODS[method]
    with pytest.raises(ValueError, match="give (the data )?a reward"):
        data = own_prompts.module(place, critic=ModelCritic(max_new=4), **(knobs | {"reward": None}))
        fit_once(cls(policy=own_prompts.policy(tokenizer), **settings), data)


@pytest.mark.parametrize("cls", [JointPolicy, UnweightedInjectionPolicy])
def test_expected_responses_of_a_file_join_their_groups_on_a_chat_template(tmp_path, tokenizer, cls):
    """The scorer scores three replies per group: two of the policy, and the expected response of the file."""
    records = [{"prompt": text, "expected": "the answer is 2"} for text in QUESTIONS]
    task = PromptFile(own_prompts.lines(tmp_path / "p.jsonl", records), val_share=0.25, test_share=0.25)
    knobs = {"prompts": 2, "replies": 2, "max_new": 4, "context": 512, "reward": Payer()}
    data = TextDataModule(task, tokenizer=tokenizer, expected=ExpectedResponses(), **knobs)
    data.trainer = own_prompts.module(tmp_path, critic=ModelCritic()).trainer
    data.setup("fit")
    agent = cls(policy=own_prompts.policy(tokenizer), **(GROUP | (NLL if cls is JointPolicy else {})))
    batch, losses, moved = fit_once(agent, data)
    expert = batch[batch.expert_mask.any(1)]
    assert len(expert) == 2 and batch.group.bincount().tolist() == [3, 3]
    ids = [*tokenizer.encode("the answer is 2"), tokenizer.eos]
    assert all(row.actions[row.expert_mask].tolist() == ids for row in (expert[i : i + 1] for i in range(2)))
    assert moved and all(loss.isfinite() for loss in losses.values())
