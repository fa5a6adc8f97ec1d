"""Pendulum episodes: predicted, reviewed by people, and used for training."""

import json
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from data_modules.feedback.people import AskPeople, EpisodeFeedbackDataModule
from data_modules.feedback.people.callback import filmed
from data_modules.feedback.people.pull import pull
from data_modules.judgements.files import write
from data_modules.judgements.schema import Judgement
from data_modules.offline import load_batch
from data_modules.pendulum import PendulumDataModule
from data_modules.pendulum.experts import LQRExpert
from lightning_nlf.batch import Batch
from lightning_nlf.networks import GaussianPolicy
from lightning_nlf.objectives import JointPolicy
from lightning_nlf.tracking.logger import MLflowJournalLogger


def episode(steps: int, padding: int = 0) -> Batch:
    """One row with this many steps; the observation of a step is its index."""
    shape = (1, steps + padding)
    valid = torch.arange(shape[1])[None] < steps
    return Batch(
        obs=torch.arange(shape[1], dtype=torch.float32)[None, :, None].expand(*shape, 4) * 0.01 * valid[..., None],
        actions=torch.full((*shape, 1), 0.5) * valid[..., None],
        valid=valid,
        mask=valid,
        log_probs=torch.zeros(shape),
        rewards=valid.float(),
        final_obs=torch.zeros(1, 4),
        terminated=torch.ones(1, dtype=torch.bool),
    )


class Pictures:
    """DataModule whose pictures are text files with the length of the episode."""

    question = "How was it?"

    def film(self, episode, path, title):
        path.write_text(str(int(episode.valid.sum())))
        return path


@pytest.fixture
def make_data(tmp_path):
    """Factory of DataModules with reviewed episodes of 3 and 5 steps."""

    def rows(*feedback, **knobs):
        filmed_lines = [filmed(Pictures(), episode(steps), "sampled", tmp_path)[0] for steps in (3, 5)]
        records = [line | fields for line, fields in zip(filmed_lines, feedback, strict=False)]
        judgements = [
            Judgement(
                prompt=record["prompt"],
                responses=tuple(record["responses"]),
                score=None if "score" not in record else (record["score"],),
                expected=record.get("expected"),
                episode=record["episode"],
            )
            for record in records
        ]
        write(tmp_path / "said.jsonl", judgements)
        data = EpisodeFeedbackDataModule(str(tmp_path / "said.jsonl"), **knobs)
        data.trainer = SimpleNamespace(world_size=1, global_rank=0, accumulate_grad_batches=1)
        data.setup("fit")
        return data

    return rows


def test_a_row_is_kept_beside_its_picture(tmp_path):
    batch = episode(3, padding=2)
    (line,) = filmed(Pictures(), batch, "sampled", tmp_path)
    assert line["responses"] == ["3 steps, return 3, ended by termination"] and line["meta"] == {"steps": 3}
    recorded = load_batch(line["episode"])
    assert torch.equal(recorded.obs, batch.obs[:, :3]) and recorded.valid.all()
    assert (tmp_path / f"{line['id']}.gif").read_text() == "3"


def test_another_episode_never_lies_where_a_review_says_that_this_one_is(tmp_path):
    (first,), (second,) = (filmed(Pictures(), episode(steps), "sampled", tmp_path) for steps in (3, 4))
    assert first["episode"] != second["episode"]


def test_a_score_is_the_reward_at_the_last_step(make_data):
    """The second episode has no score, so the learner does not learn from its own steps there."""
    rows = make_data({"score": 0.25}, {"expected": "1: 1"}).rows
    assert rows.rewards.tolist() == [[0, 0, 0.25, 0, 0], [0, 0, 0, 0, 0]]
    assert rows.mask.tolist() == [[True] * 3 + [False] * 2, [False] * 5]
    assert rows.score[0] == 0.25 and rows.score[1].isnan()


def test_forces_are_imitated_where_they_are_marked(make_data):
    rows = make_data({"expected": "2: -1.5"}, {"expected": "1: 1, 4-5: 2"}).rows
    assert rows.expert_mask.int().tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 1, 1]]
    assert rows.expert_actions[rows.expert_mask].flatten().tolist() == [-1.5, 1, 2, 2]


def test_an_expert_is_imitated_throughout_by_its_mean(make_data):
    rows = make_data({"expected": "LQRExpert"}, {"score": 1}).rows
    assert rows.expert_mask.int().tolist() == [[1, 1, 1, 0, 0], [0] * 5]
    mean = LQRExpert().act(rows.obs[0, :3])[2]["mean"]
    torch.testing.assert_close(rows.expert_actions[0, :3], mean)


def test_what_was_said_is_counted_once(make_data):
    data = make_data({"score": 1, "expected": "LQRExpert"}, {"expected": "1: 1"})
    for _ in range(2):
        assert len(data.collect(None, None)) == 2
    assert data.counters["feedback_calls"] == 3


def test_what_cannot_be_learned_from_is_refused(tmp_path, make_data):
    with pytest.raises(ValueError, match="episode: path: there is no file .*sampled"):
        make_data({"score": 1})
        for path in tmp_path.glob("*.pt"):
            path.unlink()
        EpisodeFeedbackDataModule(str(tmp_path / "said.jsonl")).setup("fit")
    write(tmp_path / "said.jsonl", [Judgement(prompt="a", responses=("b",), score=(1.0,))])
    with pytest.raises(ValueError, match=r"said.jsonl:1: episode: is missing; .* FeedbackDataModule"):
        EpisodeFeedbackDataModule(str(tmp_path / "said.jsonl")).setup("fit")
    with pytest.raises(ValueError, match="outside the scale 0 to 0.5"):
        make_data({"score": 1}, scale=(0.0, 0.5))


# ---- the whole way


@pytest.mark.slow
def test_predicted_reviewed_pulled_and_fitted(tmp_path, place, person, monkeypatch):
    """The policy's mean moves towards the forces that a person gave, at the states that they were given for."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = JointPolicy(
        policy=GaussianPolicy(4, 1), divergence="nll", optimizer=lambda groups: torch.optim.Adam(groups, lr=0.02)
    )
    ask = AskPeople("q", experiment=place["experiment"])
    quiet(callbacks=[ask], logger=MLflowJournalLogger("run", **place)).predict(
        module, PendulumDataModule(evaluation_episodes=1)
    )
    lines = [json.loads(line) for line in (tmp_path / "run/predictions/filmed.jsonl").read_text().splitlines()]
    assert [line["id"].split("-")[0] for line in lines] == ["deterministic", "sampled"]
    assert person.sees() == {line["id"]: "pending" for line in lines}

    person.reviews(lines[0]["id"], "ana", "it tips over", score=0.1, expected_action="2: 2.5, 4: 2.5")
    person.reviews(lines[1]["id"], "ana", expected_action="99999: 1")
    reviews = pull("q", "said.jsonl", **place)
    assert len(reviews.judgements) == 1 and "the episode, which has the steps 1 to" in reviews.reopened
    assert reviews.judgements[0].critique == ("it tips over",)

    data = EpisodeFeedbackDataModule("said.jsonl")
    data.setup("fit")
    where = data.rows.obs[data.rows.expert_mask][:, None]
    before = module.policy(where).mean.detach()
    quiet(max_epochs=20).fit(module, data)
    after = module.policy(where).mean.detach()
    assert ((after - 2.5).abs() < (before - 2.5).abs()).all()


def quiet(logger=False, **knobs) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir="run", **knobs,
    )  # fmt: skip
