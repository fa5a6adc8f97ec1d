"""Arms of `own_prompts.py`: a yaml of `conf/chat`, the flags to override, and a preceding step if needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MADE_OF_FILE = ("--data.val_share", "0", "--data.val_path", "my/held_out.jsonl")
RANKED = ("--data.path", "my/ranked.jsonl", "--data.val_share", "0", "--data.val_path", "my/held_out_ranked.jsonl")
PROMPTS = (
    *("--data.task.val_share", "0", "--data.task.test_share", "0"),
    *("--data.task.val_path", "my/held_out_prompts.jsonl"),
)
# 64 attempts, one per prompt
FEW = ("--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "4")
# the first version of conf/chat/ilf: one step per iteration, and revisions sampled at temperature 1
ONE_STEP = (*FEW, "--data.passes", "1", "--data.temperature", "1", "--model.lr", "0.0003")
# 128 replies, four per prompt, in 16 steps that are larger than the yaml's
TRIALS = (
    *("--trainer.max_epochs", "8", "--trainer.check_val_every_n_epoch", "8"),
    *("--data.prompts", "4", "--model.lr", "0.0005"),
)
# 64 replies, four per prompt, in 16 steps
FEW_TRIALS = (*FEW, "--data.prompts", "4", "--data.minibatches", "4", "--model.lr", "0.0005")
PEOPLE = ("--data.critic", "data_modules.feedback.FileCritic", "--data.critic.path", "my/feedback.jsonl")
ENDPOINT = (
    *("--data.critic", "data_modules.feedback.providers.EndpointCritic"),
    *("--data.critic.endpoint.concurrency", "1", "--data.critic.endpoint.timeout", "600"),  # the server has one core
)
EXPECTED = ("--data.reviser", "data_modules.feedback.FileCritic", "--data.reviser.path", "my/feedback.jsonl")
OVERLAYS = {
    "my/judge.yaml": """
data:
  init_args:
    reward:
      class_path: data_modules.feedback.providers.LocalJudge
      init_args:
        policy:
          class_path: lightning_nlf.experts.PolicyTextExpert
          init_args:
            policy: {class_path: lightning_nlf.networks.TransformerPolicy, init_args: {weights: my/model}}
        tokenizer: {class_path: data_modules.text.FolderTokenizer, init_args: {path: my/model}}
        question:
          class_path: data_modules.feedback.providers.ScoreQuestion
          init_args:
            low: 0
            high: 9
            scale: [0, 9]
            template: |
              Does the response say the same as the reference answer? Rate it from {low} (not at all) to {high} (fully).
              Answer with the number alone.

              Prompt - {prompt}

              Reference answer - {reference}

              Response - {response}

              Rating=
""",
    "my/reviser.yaml": """
data:
  init_args:
    reviser:
      class_path: lightning_nlf.experts.PolicyTextExpert
      init_args:
        policy:
          class_path: lightning_nlf.networks.TransformerPolicy
          init_args: {weights: "outputs/chat/sft-seed${seed_everything}/huggingface"}
""",
}


@dataclass(frozen=True)
class Arm:
    """A fit of the benchmark.

    Args:
        yaml: name of the yaml in `conf/chat`.
        flags: overrides on the command line.
        after: name in `STEPS` of the fit or prediction that runs before.
        endpoint: whether the server of transformers is started as the critic.
    """

    yaml: str
    flags: Sequence[str] = ()
    after: str | None = None
    endpoint: bool = False


STEPS = {
    "reviews": ("predict", "sample", ("--data.replies", "1", "--data.max_new", "64")),
    "sft": ("fit", "sft", (*MADE_OF_FILE, "--trainer.max_epochs", "2")),
    "reward": ("fit", "reward", (*RANKED, "--trainer.max_epochs", "1")),
}
ARMS = {
    "sft": Arm("sft", MADE_OF_FILE),
    "round, people's reviews": Arm("round", MADE_OF_FILE, after="reviews"),
    "round, people's reviews, 4 minibatches": Arm("round", (*MADE_OF_FILE, "--data.minibatches", "4"), after="reviews"),
    "dpo": Arm("dpo", RANKED),
    "mixed": Arm("mixed", (*RANKED, "--trainer.max_epochs", "1", "--data.minibatches", "16")),
    "ppo, a reward model": Arm("ppo", (*TRIALS, *PROMPTS), after="reward"),
    "joint, a reward model": Arm("joint", (*TRIALS, *PROMPTS), after="reward"),
    "ppo, a judge": Arm("ppo", ("--config", "my/judge.yaml", *TRIALS, *PROMPTS)),
    "ilf, its own critiques, one step": Arm("ilf", (*ONE_STEP, *PROMPTS)),
    "ilf, its own critiques": Arm("ilf", (*FEW, *PROMPTS)),
    "ilf, an endpoint's critiques, one step": Arm("ilf", (*ONE_STEP, *PROMPTS, *ENDPOINT), endpoint=True),
    "ilf, people's critiques, one step": Arm("ilf", (*ONE_STEP, *PROMPTS, *PEOPLE)),
    "ilf, people's critiques": Arm("ilf", (*FEW, *PROMPTS, *PEOPLE)),
    "ilf, people's critiques, the sft arm revises": Arm(
        "ilf", ("--config", "my/reviser.yaml", *FEW, *PROMPTS, *PEOPLE), after="sft"
    ),
    "ilf, people's critiques and responses, one step": Arm("ilf", (*ONE_STEP, *PROMPTS, *PEOPLE, *EXPECTED)),
    "ilf, people's critiques and responses": Arm("ilf", (*FEW, *PROMPTS, *PEOPLE, *EXPECTED)),
    "sdpo, its own critiques": Arm("sdpo", (*FEW, *PROMPTS)),
    "sdpo, people's critiques": Arm("sdpo", (*FEW, *PROMPTS, *PEOPLE)),
    "rltf_sd, a reward model": Arm("rltf_sd", (*FEW_TRIALS, *PROMPTS), after="reward"),
}
