"""Judge on the server of transformers, with a tiny model and votes, because it gives no log-probabilities."""

import json
import os
import socket
import subprocess
import sys

import pytest
import yaml

from data_modules.feedback.__main__ import main
from data_modules.feedback.providers import Endpoint, EndpointCritic
from data_modules.judgements.files import read, write
from data_modules.judgements.schema import Judgement
from data_modules.text.environment import Case

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LINES = [Judgement(f"question {i}", ("good", "bad")) for i in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder with a Llama that answers 1 or 2 with equal probability to any prompt, and then stops."""
    torch, tokenizers, transformers = (pytest.importorskip(name) for name in ("torch", "tokenizers", "transformers"))
    pytest.importorskip("openai", reason="transformers' server needs it")
    folder = tmp_path_factory.mktemp("model")
    vocabulary = {token: i for i, token in enumerate(("<unk>", "<eos>", "1", "2"))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=512, eos_token_id=1, pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        # The blocks write zeros, so the next token depends only on the last one: a number is followed by the end token.
        for name, p in llama.named_parameters():
            if ".o_proj." in name or ".down_proj." in name:
                p.zero_()
        llama.model.embed_tokens.weight.zero_()
        llama.lm_head.weight.zero_()
        for token, place in ((0, 0), (1, 0), (2, 1), (3, 1)):
            llama.model.embed_tokens.weight[token, place] = 1.0
        llama.lm_head.weight[2:, 0] = 10.0  # 1 and 2 after words
        llama.lm_head.weight[1, 1] = 10.0  # the end token after 1 and 2
    llama.generation_config.do_sample = True
    llama.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(model):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", start, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--device", "cpu"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = []
    try:
        for line in process.stdout:  # until the server runs or exits
            output.append(line.decode())
            if "Uvicorn running" in output[-1]:
                break
        else:
            pytest.fail("".join(output[-40:]))
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.slow
def test_votes_of_a_server_that_others_wrote(url, model, tmp_path, capsys):
    """A judge without a preference: about half of 24 votes for each reply, and the same votes in a second run.

    Of 24 fair votes, fewer than 3 or more than 21 are for the first reply once in 27,000 runs; the votes are seeded.
    """
    write(tmp_path / "in.jsonl", LINES)
    endpoint = {"url": url, "model": f"{model}", "cache": str(tmp_path / "cache"), "concurrency": 1}
    question = {"class_path": "data_modules.feedback.providers.PreferenceQuestion", "init_args": {"votes": 12}}
    config = {
        "class_path": "data_modules.feedback.providers.ModelJudge",
        "init_args": {"endpoint": endpoint, "questions": [question]},
    }
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(config))
    arguments = ["judge", str(tmp_path / "in.jsonl"), "--config", str(tmp_path / "judge.yaml")]
    assert main([*arguments, "--out", str(tmp_path / "out.jsonl")]) == 0
    assert "(48 calls, 0 cached" in capsys.readouterr().out
    lines = read(tmp_path / "out.jsonl")
    assert all(0.1 < line.preference < 0.9 for line in lines)
    answers = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("*.json")]
    votes = {answer["choices"][0]["message"]["content"].strip() for answer in answers}
    assert votes == {"1", "2"}
    assert main([*arguments, "--out", str(tmp_path / "again.jsonl")]) == 0
    assert read(tmp_path / "again.jsonl") == lines and "(0 calls, 48 cached" in capsys.readouterr().out


@pytest.mark.slow
def test_a_server_without_log_probs_is_told(url, model, tmp_path, capsys):
    write(tmp_path / "in.jsonl", LINES)
    endpoint = {"url": url, "model": f"{model}", "cache": None}
    question = {"class_path": "data_modules.feedback.providers.PreferenceQuestion"}
    config = {
        "class_path": "data_modules.feedback.providers.ModelJudge",
        "init_args": {"endpoint": endpoint, "questions": [question]},
    }
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(config))
    arguments = ["judge", str(tmp_path / "in.jsonl"), "--config", str(tmp_path / "judge.yaml")]
    assert main([*arguments, "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "the server gives no log-probabilities; set votes to sample answers instead" in capsys.readouterr().err


@pytest.mark.slow
def test_critiques_and_revisions_of_a_server_that_others_wrote(url, model, tmp_path):
    """Every answer is 1 or 2, and the second time it comes from the cache."""
    endpoint = Endpoint(url=url, model=str(model), cache=str(tmp_path / "cache"), concurrency=1)
    teacher, cases = EndpointCritic(endpoint), [Case("a", "question 1"), Case("b", "question 2")]
    for calls, cached in ((4, 0), (4, 4)):
        critiques = teacher.critiques(cases, ["good", "bad"], [0, 1], None)
        revisions = teacher.revisions(cases, ["good", "bad"], critiques, [0, 1], None)
        assert {*critiques, *(revision.text for revision in revisions)} <= {"1", "2"}
        assert (teacher.counters["calls"], teacher.counters["cached"]) == (calls, cached)
