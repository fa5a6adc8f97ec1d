"""Bad input of language runs gives a one-line error with place and remedy, before training, and leaves no files."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from lightning_nlf.cli.command_line import main

ROOT = Path(__file__).parents[3]
SHAPE = {"vocabulary": 40, "layers": 1, "heads": 2, "width": 16, "context": 24}
LARGE = SHAPE | {"vocabulary": 288, "context": 48}
LINE = {"prompt": "say a", "responses": ["a b", "c"], "ranking": "A > B", "expected": "a b"}
LINES = [LINE, LINE | {"prompt": "say b"}, LINE | {"prompt": "say c"}]
REVIEW = {"prompt": "this museum was", "responses": ["a letdown", "awful"], "ranking": "A > B"}
LONG = LINE | {"prompt": "say" + " a" * 30}


def spec(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


def policy(**init_args):
    return spec("lightning_nlf.networks.TransformerPolicy", **({"shape": SHAPE} | init_args))


def hugging_face(**sizes):
    """A transformers policy of the same sizes."""
    pytest.importorskip("transformers")
    defaults = {"vocab_size": 40, "n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = {"model_type": "gpt2", "bos_token_id": 1, "eos_token_id": 1} | defaults | sizes
    return spec("lightning_nlf.networks.HuggingFacePolicy", config=config)


def tokenizer(folder=None):
    if folder is None:
        return spec("data_modules.text.WordTokenizer")
    return spec("data_modules.text.FolderTokenizer", path=str(folder))


def sft(network=None, path="file.jsonl", words=None, **data):
    return (
        spec("lightning_nlf.objectives.ImitationPolicy", policy=network or policy(), divergence="nll"),
        spec("data_modules.text.DemonstrationsDataModule", tokenizer=words or tokenizer(), path=path, **data),
    )


def from_rankings(model, path="file.jsonl", words=None, **data):
    data |= {"tokenizer": words or tokenizer(), "path": path, "use": ["ranking"]}
    return model, spec("data_modules.feedback.FeedbackDataModule", **data)


def dpo(network=None, **data):
    return from_rankings(spec("lightning_nlf.objectives.DPOPolicy", policy=network or policy()), **data)


def reward(network=None, **data):
    network = network or spec("lightning_nlf.networks.TransformerReward", shape=SHAPE)
    return from_rankings(spec("lightning_nlf.objectives.BradleyTerryReward", reward=network), **data)


def rl(network=None, scorer=None, **data):
    data = {"prompts": 4, "replies": 2, "max_new": 8, "evaluation_prompts": 2} | data
    data |= {"task": spec("data_modules.text.PositiveReviews"), "tokenizer": tokenizer()}
    if scorer is not None:
        data["reward"] = spec("lightning_nlf.scorers.CheckpointReward", checkpoint=str(scorer))
    model = spec("lightning_nlf.objectives.RLHFPolicy", policy=network or policy(shape=LARGE))
    return model, spec("data_modules.text.TextDataModule", **data)


def fit(model, data, run="run"):
    trainer = {"logger": False, "enable_progress_bar": False, "max_epochs": 1, "accelerator": "cpu"}
    Path("run.yaml").write_text(yaml.safe_dump({"trainer": trainer, "model": model, "data": data}))
    main(["fit", "--config", "run.yaml", "--run_dir", str(run)])


def write(lines, path="file.jsonl"):
    Path(path).write_text("".join(line + "\n" if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_NLF_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    write(LINES)


@pytest.fixture
def refused(capsys):
    """A function that runs a fit which must end with exit code 2 and no run folder, and returns its message."""

    def message(model, data):
        with pytest.raises(SystemExit) as ending:
            fit(model, data)
        output = capsys.readouterr().err
        assert ending.value.code == 2
        assert "Traceback" not in output and not Path("run").exists()
        (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(error) < 400
        return error

    return message


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of supervised fine-tuning and a run of a reward model, on the same file."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(LINES)
        fit(*sft(), run="sft")
        fit(*reward(), run="reward")
    return folder


BAD_LINES = {
    "empty reply": (LINE | {"responses": ["a", ""]}, "responses: response B: the text is empty; leave"),
    "duplicate id": (LINE | {"id": "x"}, "id: 'x' is also on line 3; make it unique"),
    "absent reply": (LINE | {"ranking": "A > C"}, "ranking: 'A > C' names 'C', but the responses are A to B"),
    "left out": (LINE | {"ranking": "A"}, "ranking: 'A' leaves out B; name each response once"),
    "no JSON": ("hello", "not JSON: Expecting value at column 1; one object per line"),
    "no object": ([1], "a line must be an object like"),
    "misspelt": (LINE | {"rankin": "A > B"}, "rankin: unknown field; did you mean ranking?"),
}


@pytest.mark.parametrize("line, part", BAD_LINES.values(), ids=BAD_LINES)
def test_a_line_that_is_wrong(line, part, refused):
    write([LINE, LINE, LINE | {"id": "x"}, line])
    assert f"error: file.jsonl:4: {part}" in refused(*dpo())


def test_an_expected_response_that_is_empty(refused):
    write([*LINES, LINE | {"expected": " "}])
    assert "error: file.jsonl:4: expected: the text is empty" in refused(*sft())


@pytest.mark.parametrize("make", [sft, dpo, reward])
def test_a_file_that_is_not_there_or_holds_nothing(make, refused):
    assert "path: there is no file nowhere.jsonl" in refused(*make(path="nowhere.jsonl"))
    write([])
    assert "file.jsonl: there is no judgement in it" in refused(*make())


@pytest.mark.parametrize("make", [sft, dpo, reward])
def test_a_row_longer_than_the_context(make, refused):
    """Rows of 31 + 2 or 3 tokens for a network of context 24. A policy need not read the last token of a row."""
    write([*LINES, LONG])
    assert "error: file.jsonl:4: 3" in refused(*make(context=24))
    message = refused(*make())
    assert "error: file.jsonl:4: 3" in message and re.search(
        r" 2[45] tokens of a row \(context\)|the context of 2[45];", message
    )


@pytest.mark.parametrize("make", [sft, dpo])
def test_a_model_of_transformers_refuses_in_the_same_words(make, refused):
    write([*LINES, LONG])
    assert refused(*make(hugging_face())) == refused(*make(policy()))
    message = refused(*make(hugging_face(vocab_size=6, n_positions=48)))
    assert message == refused(*make(policy(shape=SHAPE | {"vocabulary": 6, "context": 48})))
    assert "vocabulary: the policy has 6 token ids, but the data has" in message


def test_a_prompt_without_room_for_the_reply(refused):
    message = refused(*rl(context=20, max_new=16))
    assert "train case '" in message and "tokens and 16 reply tokens (max_new) exceed the 20 tokens of a row" in message
    message = refused(*rl(policy(shape=LARGE | {"context": 20}), max_new=16))
    assert "tokens and 16 reply tokens (max_new) exceed the 21 tokens of a row (context)" in message


@pytest.mark.parametrize("knob", ["reward", "labeller"])
def test_a_row_that_the_reward_model_or_labeller_cannot_read(knob, refused):
    """The reward model or labeller knows the same words but has a smaller context than the policy."""
    small = LARGE | {"context": 10}
    task = {"task": spec("data_modules.text.PositiveReviews")}  # it has a known vocabulary
    if knob == "reward":
        write([REVIEW] * 3)
        fit(*reward(spec("lightning_nlf.networks.TransformerReward", shape=small), **task, val_share=0), run="judge")
        message = refused(*rl(scorer=Path("judge/checkpoints/last.ckpt")))
    else:
        expert = spec("lightning_nlf.experts.PolicyTextExpert", policy=policy(shape=small))
        message = refused(*rl(labeller=expert))
    readable = 10 if knob == "reward" else 11
    assert f"data.{knob}: the model can read {readable} tokens, and a row has up to " in message
    assert f"shorten the prompts or max_new, or use another {knob} with a larger context" in message


def test_a_tokenizer_without_eos(trained, refused):
    shutil.copytree(trained / "sft" / "huggingface", "folder")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = Path("folder") / name
        content = json.loads(path.read_text())
        del content["eos_token"]
        path.write_text(json.dumps(content))
    message = refused(*sft(words=tokenizer("folder")))
    assert "has no eos token: give one, such as `eos: <|endoftext|>`" in message


def test_a_tokenizer_of_another_digest(trained, refused):
    """The tokenizer of the file has one word more than that of the weights or the reward model."""
    write([*LINES, LINE | {"expected": "zebra"}])
    weights = str(trained / "sft" / "checkpoints" / "last.ckpt")
    assert "tokenizer: the policy was trained with a different tokenizer (" in refused(*dpo(policy(weights=weights)))
    message = refused(*rl(scorer=trained / "reward" / "checkpoints" / "last.ckpt"))
    assert "reward: the model was trained with a different tokenizer (" in message
    assert "the policy has 40 token ids, but the data has" in refused(*rl(policy()))


@pytest.mark.parametrize("change", [{"width": 32}, {"layers": 2}, {"heads": 1}, {"family": "llama"}, {"context": 32}])
def test_weights_of_another_shape(change, trained, refused):
    """One head fewer has the same tensors, but is another model."""
    weights = str(trained / "sft" / "checkpoints" / "last.ckpt")
    ((name, size),) = change.items()
    message = refused(*dpo(policy(shape=SHAPE | change, weights=weights)))
    saved_size = (SHAPE | {"family": "gpt2"})[name]
    assert f"model.init_args.policy.init_args.shape.{name} (run.yaml, line " in message
    assert f": got {size}, but {weights} has {saved_size}; remove `shape`" in message


def test_weights_and_scorers_that_are_not_there(trained, refused):
    checkpoint = trained / "sft" / "checkpoints" / "last.ckpt"
    message = refused(*dpo(policy(weights="gone.ckpt")))
    assert "weights (run.yaml, line " in message and "there is no file gone.ckpt" in message
    message = refused(*dpo(policy(weights=str(trained / "reward" / "checkpoints" / "last.ckpt"))))
    assert "weights (run.yaml, line " in message and " has no policy; use a checkpoint that has one" in message
    Path("cut.ckpt").write_bytes(checkpoint.read_bytes()[:2000])
    assert "cut.ckpt is damaged, incomplete or not a checkpoint" in refused(*dpo(policy(weights="cut.ckpt")))
    assert "CheckpointReward: the checkpoint gone.ckpt does not exist" in refused(*rl(scorer="gone.ckpt"))
    assert "is of ImitationPolicy, which is not a RewardModule" in refused(*rl(scorer=checkpoint))


def test_a_run_that_cannot_learn_says_so():
    """With two tokens every reply is cut, and all replies of a group earn the same reward."""
    with pytest.warns() as caught:
        fit(*rl(max_new=2))
    messages = [str(warning.message) for warning in caught]
    assert any(text.startswith("every reply was cut off at 2 tokens: raise max_new") for text in messages)
    assert any(text.startswith("in every group all replies have the same reward") for text in messages)
