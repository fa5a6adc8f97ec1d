"""Bad input of language runs: one line that says what, where and the mend, before training, and nothing is left."""

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
    """A policy of transformers of the same sizes."""
    pytest.importorskip("transformers")
    own = {"vocab_size": 40, "n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = {"model_type": "gpt2", "bos_token_id": 1, "eos_token_id": 1} | own | sizes
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
    """The message of a fit that ends with exit code 2, before there is anything in its folder."""

    def message(model, data):
        with pytest.raises(SystemExit) as ending:
            fit(model, data)
        said = capsys.readouterr().err
        assert ending.value.code == 2
        assert "Traceback" not in said and not Path("run").exists()
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(error) < 400
        return error

    return message


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of supervised fine-tuning and one of a reward model, on the same file."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(LINES)
        fit(*sft(), run="sft")
        fit(*reward(), run="reward")
    return folder


BAD_LINES = {
    "empty reply": (LINE | {"responses": ["a", ""]}, "responses: of response B: the text is empty; leave"),
    "duplicate id": (LINE | {"id": "x"}, "id: 'x' is that of line 3 as well; make it unique"),
    "absent reply": (LINE | {"ranking": "A > C"}, "ranking: 'A > C' names 'C', but the responses are A to B"),
    "left out": (LINE | {"ranking": "A"}, "ranking: 'A' leaves out B; name each response once"),
    "no JSON": ("hello", "not JSON: Expecting value at column 1; one object a line"),
    "no object": ([1], "a line is an object like"),
    "misspelt": (LINE | {"rankin": "A > B"}, "rankin: unknown field; did you mean ranking?"),
}


@pytest.mark.parametrize("line, said", BAD_LINES.values(), ids=BAD_LINES)
def test_a_line_that_is_wrong(line, said, refused):
    write([LINE, LINE, LINE | {"id": "x"}, line])
    assert f"error: file.jsonl:4: {said}" in refused(*dpo())


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
    """31 and 2 or 3 tokens for a network of 24, which need not read the last of a policy's: the line is named."""
    write([*LINES, LONG])
    assert "error: file.jsonl:4: 3" in refused(*make(context=24))
    message = refused(*make())
    assert "error: file.jsonl:4: 3" in message and re.search(r" 2[45] (that a row may have )?\(context\)", message)


@pytest.mark.parametrize("make", [sft, dpo])
def test_a_model_of_transformers_refuses_in_the_same_words(make, refused):
    write([*LINES, LONG])
    assert refused(*make(hugging_face())) == refused(*make(policy()))
    message = refused(*make(hugging_face(vocab_size=6, n_positions=48)))
    assert message == refused(*make(policy(shape=SHAPE | {"vocabulary": 6, "context": 48})))
    assert "vocabulary: the policy knows 6 token ids and the data has" in message


def test_a_prompt_without_room_for_the_reply(refused):
    message = refused(*rl(context=20, max_new=16))
    assert (
        "train case '" in message and "tokens and 16 of the reply (max_new) are more than the 20 that a row" in message
    )
    message = refused(*rl(policy(shape=LARGE | {"context": 20}), max_new=16))
    assert "tokens and 16 of the reply (max_new) are more than the 21 that a row may have (context)" in message


@pytest.mark.parametrize("knob", ["reward", "labeller"])
def test_a_row_that_whoever_pays_or_labels_cannot_read(knob, refused):
    """It was trained on the same words, and on shorter rows; the policy itself has room."""
    small = LARGE | {"context": 10}
    same = {"task": spec("data_modules.text.PositiveReviews")}  # whose words are known
    if knob == "reward":
        write([REVIEW] * 3)
        fit(*reward(spec("lightning_nlf.networks.TransformerReward", shape=small), **same), run="judge")
        message = refused(*rl(scorer=Path("judge/checkpoints/last.ckpt")))
    else:
        expert = spec("lightning_nlf.experts.PolicyTextExpert", policy=policy(shape=small))
        message = refused(*rl(labeller=expert))
    readable = 10 if knob == "reward" else 11
    assert f"data.{knob}: it can read {readable} tokens, and a row has up to " in message
    assert f"shorten prompts or max_new, or use another {knob} with a larger context" in message


def test_a_tokenizer_without_eos(trained, refused):
    shutil.copytree(trained / "sft" / "huggingface", "folder")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = Path("folder") / name
        content = json.loads(path.read_text())
        del content["eos_token"]
        path.write_text(json.dumps(content))
    message = refused(*sft(words=tokenizer("folder")))
    assert "has no eos token: name one, such as `eos: <|endoftext|>`" in message


def test_a_tokenizer_of_another_digest(trained, refused):
    """That of the file knows one word more than the weights, or the reward model, have learned."""
    write([*LINES, LINE | {"expected": "zebra"}])
    weights = str(trained / "sft" / "checkpoints" / "last.ckpt")
    assert "tokenizer: the policy has learned the ids of another (" in refused(*dpo(policy(weights=weights)))
    message = refused(*rl(scorer=trained / "reward" / "checkpoints" / "last.ckpt"))
    assert "reward: it reads the ids of another tokenizer (" in message
    assert "the policy knows 40 token ids and the data has" in refused(*rl(policy()))


@pytest.mark.parametrize("change", [{"width": 32}, {"layers": 2}, {"heads": 1}, {"family": "llama"}, {"context": 32}])
def test_weights_of_another_shape(change, trained, refused):
    """One head fewer is the same tensors, and another model."""
    weights = str(trained / "sft" / "checkpoints" / "last.ckpt")
    ((name, here),) = change.items()
    message = refused(*dpo(policy(shape=SHAPE | change, weights=weights)))
    there = (SHAPE | {"family": "gpt2"})[name]
    assert f"model.init_args.policy.init_args.shape.{name} (run.yaml, line " in message
    assert f": got {here}, and {weights} has another shape, with {there}; leave shape out" in message


def test_weights_and_scorers_that_are_not_there(trained, refused):
    kept = trained / "sft" / "checkpoints" / "last.ckpt"
    message = refused(*dpo(policy(weights="gone.ckpt")))
    assert "weights (run.yaml, line " in message and "there is no file gone.ckpt" in message
    message = refused(*dpo(policy(weights=str(trained / "reward" / "checkpoints" / "last.ckpt"))))
    assert "weights (run.yaml, line " in message and "there is no policy in " in message
    Path("cut.ckpt").write_bytes(kept.read_bytes()[:2000])
    assert "cut.ckpt is cut short, damaged, or no checkpoint" in refused(*dpo(policy(weights="cut.ckpt")))
    assert "CheckpointReward: no checkpoint at gone.ckpt" in refused(*rl(scorer="gone.ckpt"))
    assert "is of ImitationPolicy, which is no RewardModule" in refused(*rl(scorer=kept))


def test_a_run_that_cannot_learn_says_so():
    """Two tokens are no review: every reply is cut, and of a group all earn the same."""
    with pytest.warns() as caught:
        fit(*rl(max_new=2))
    said = [str(warning.message) for warning in caught]
    assert any(text.startswith("every reply was cut at 2 tokens: raise max_new") for text in said)
    assert any(text.startswith("in every group all replies earned the same") for text in said)
