"""A round of feedback in four commands with a real review page: predict, review, pull, fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from data_modules.feedback.__main__ import main as feedback
from data_modules.feedback.people.items import ACTION, EXPECTED
from data_modules.feedback.people.store import opened
from lightning_nlf.cli.command_line import main
from tests.data_modules.feedback.people.conftest import Reviewer
from tests.mlflow_server import Server

ROOT = Path(__file__).parents[4]
QUIET = ["--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("server"))
    started.start()
    yield started
    started.kill()


@pytest.fixture
def project(tmp_path, monkeypatch, server):
    """Empty working folder with a copy of the yamls; runs are logged to the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_NLF_RUN_DIR", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    return tmp_path


def page_of(queue: str, uri: str) -> str:
    with opened(uri, "lightning_nlf") as store:
        return store.page(store.queue(queue))


def weights(checkpoint: Path) -> torch.Tensor:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return torch.cat([x.flatten() for name, x in sorted(state.items()) if name.startswith("policy.")])


@pytest.mark.slow
def test_one_round_of_feedback_in_four_commands(project, server, browser, capsys):
    start = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "60", "--trainer.logger", "false"]
    main(["fit", "--config", "conf/answers/sft.yaml", *start, *QUIET])

    main(["predict", "--config", "conf/answers/ask.yaml", "--data.evaluation_prompts", "2", *QUIET])
    replies = (project / "outputs/answers/ask-seed0-predict/predictions/replies.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in replies]

    reviewer = Reviewer(browser, page_of("sourced-answers", server.uri))
    prompts = [reviewer.page.get_by_text(item["prompt"]) for item in items]
    prompts[0].or_(prompts[1]).first.wait_for()  # the page may still be loading
    first, second = items if prompts[0].count() else items[::-1]
    assert reviewer.sees(first["prompt"]) and reviewer.sees(first["responses"][0])
    reviewer.photographs("answer.png")
    expected = "according to the usda , the amount of sugar in apples is high ."
    words = {EXPECTED.instruction: expected}
    reviewer.submits("1 of 2 reviewed", "0.2", "it names no source", **words)
    assert reviewer.sees(second["prompt"])
    reviewer.submits("All items in this queue have been reviewed", "7")

    pull = ["pull", "--queue", "sourced-answers", "--out", "outputs/reviews.jsonl"]
    capsys.readouterr()
    assert feedback(pull) == 0
    output = capsys.readouterr()
    assert "reviews: 1 by default" in output.out
    assert f"{second['id']}:" in output.err and "7.0 is outside the scale 0 to 1" in output.err

    again = Reviewer(browser, page_of("sourced-answers", server.uri))  # shows the reopened item
    assert again.sees(second["prompt"])
    again.submits("All items in this queue have been reviewed", "0.9")
    assert feedback(pull) == 0
    lines = [json.loads(line) for line in (project / "outputs/reviews.jsonl").read_text().splitlines()]
    by_prompt = {line["prompt"]: line for line in lines}
    critical, scored = by_prompt[first["prompt"]], by_prompt[second["prompt"]]
    assert (critical["score"], critical["critique"], critical["expected"]) == (0.2, "it names no source", expected)
    assert scored["score"] == 0.9 and "critique" not in scored
    assert critical["meta"]["tokens"] == first["meta"]["tokens"]

    main(["fit", "--config", "conf/answers/round.yaml", "--trainer.max_epochs", "1", *QUIET])
    before, after = (
        Path("outputs") / run / "checkpoints/last.ckpt" for run in ("answers/sft-seed0", "answers/round-seed0")
    )
    assert not torch.equal(weights(before), weights(after))
    metrics = (project / "outputs/answers/round-seed0/journal.jsonl").read_text()
    assert "train/policy" in metrics and "train/imitation" in metrics


@pytest.mark.slow
def test_an_episode_plays_in_the_page_and_a_force_on_a_step_is_learned(project, server, browser):
    main(["predict", "--config", "conf/pendulum/ask.yaml", "--data.evaluation_episodes", "1", *QUIET])
    reviewer = Reviewer(browser, page_of("pendulum", server.uri))
    picture = reviewer.page.get_by_alt_text("The episode plays under View full trace")
    picture.wait_for()
    size = picture.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert size == [480, 300]
    reviewer.photographs("episode.png")
    reviewer.submits("1 of 2 reviewed", "0.1", "it leans to one side", **{ACTION.instruction: "1-2: -1.5"})
    reviewer.submits("All items in this queue have been reviewed", **{ACTION.instruction: "LQRExpert"})
    assert feedback(["pull", "--queue", "pendulum", "--out", "outputs/episode_reviews.jsonl"]) == 0
    main(["fit", "--config", "conf/pendulum/round.yaml", "--trainer.max_epochs", "1", *QUIET])
    assert "train/imitation" in (project / "outputs/pendulum/round-seed0/journal.jsonl").read_text()
