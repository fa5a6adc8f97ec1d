"""Local judge: expected score by next-token probabilities, as a reward and for a file."""

import pytest
import torch
import yaml

from data_modules.feedback import read
from data_modules.feedback.__main__ import main
from data_modules.feedback.providers import LocalJudge, ScoreQuestion
from data_modules.judgements.schema import Judgement
from data_modules.text import ByteTokenizer, WordTokenizer
from data_modules.text.environment import Case, Outcome
from data_modules.text.episode import Episode, Prompt, Turn
from data_modules.text.reply_judge import ReplyJudge

TOKENIZER = ByteTokenizer().fit()
SHORT = "{reference} {prompt} | {response}"


class Policy:
    """After a text that ends with `ant`, 4 has .3 and 2 has .1, the rest is no number; after any other text, 1."""

    def __init__(self):
        self.read = []

    def label(self, obs, where):
        assert where.sum(1).tolist() == [1] * len(obs)
        logits = torch.full((len(obs), TOKENIZER.size), -30.0)
        for row, (ids, place) in enumerate(zip(obs, where.nonzero()[:, 1].tolist(), strict=True)):
            text = TOKENIZER.decode(ids[: place + 1].tolist())
            self.read.append(text)
            chances = {"4": 0.3, "2": 0.1, "x": 0.6} if text.endswith("ant") else {"1": 1.0}
            for token, chance in chances.items():
                logits[row, TOKENIZER.token(token)] = torch.tensor(chance).log()
        return logits.argmax(-1), {"logits": logits}


def judge(policy=None, **knobs):
    question = ScoreQuestion(low=0, high=4, template=SHORT, **knobs)
    return LocalJudge(policy or Policy(), TOKENIZER, question, at_once=2)


def episode(text, **facts):
    return Episode(Prompt(Case(f"case {text}", "say", facts), [1]), [Turn([2], [0.0], True, text, Outcome(None))])


def test_the_expected_number_is_paid():
    """Among the numbers, 4 has .75 and 2 has .25: 3.5/4 = .875. Equal questions are read once, padding never."""
    policy = Policy()
    mine = judge(policy)
    assert isinstance(mine, ReplyJudge)
    dialogues = [episode(text, reference="r") for text in ("ant", "a long cow", "ant", "bee")]
    assert mine.judge(dialogues) == pytest.approx([0.875, 0.25, 0.875, 0.25], abs=1e-6)
    assert policy.read == ["r say | ant", "r say | a long cow", "r say | bee"]
    assert judge(scale=(-1.0, 1.0)).judge(dialogues[:2]) == pytest.approx([0.75, -0.5], abs=1e-6)
    with pytest.raises(ValueError, match="reward: case 'case cow': has no fact 'reference'"):
        mine.judge([episode("cow")])


def test_it_scores_the_responses_of_a_file_that_have_no_score():
    policy = Policy()
    facts = {"facts": {"reference": "r"}}
    lines = [
        Judgement("say", ("ant", "cow"), score=(None, 0.5), source="ana", meta=facts),
        Judgement("say", ("bee",), meta=facts),
    ]
    ticks = []
    completed, account = judge(policy).complete(lines, lambda: ticks.append(1))
    assert completed[0].score == pytest.approx((0.875, 0.5), abs=1e-6) and completed[0].meta["said_by"] == {
        "score": "local judge"
    }
    assert completed[1].score == pytest.approx((0.25,), abs=1e-6) and completed[1].source == "local judge"
    assert account.counters["calls"] == 2 == len(ticks) and len(policy.read) == 2
    with pytest.raises(ValueError, match="judgement 1: meta.facts: has no fact 'reference'"):
        judge(policy).complete([Judgement("say", ("bee",))], lambda: None)


def test_a_number_of_two_tokens_and_a_policy_of_other_ids_are_refused():
    with pytest.raises(ValueError, match="question: '10' is 2 tokens .* use a scale from 0 to 9"):
        LocalJudge(Policy(), TOKENIZER, ScoreQuestion(low=1, high=10))
    foreign_policy = Policy()
    foreign_policy.tokenizer_digest = WordTokenizer().fit(["a"]).digest
    with pytest.raises(ValueError, match="policy: the model was trained with a different tokenizer"):
        LocalJudge(foreign_policy, TOKENIZER)


def test_the_command_judges_with_a_network_of_a_yaml(tmp_path, capsys):
    """The network is untrained, so any score on the scale is right."""
    shape = {"vocabulary": 300, "layers": 1, "heads": 2, "width": 16, "context": 400}
    network = {"class_path": "lightning_nlf.networks.TransformerPolicy", "init_args": {"shape": shape}}
    policy = {"class_path": "lightning_nlf.experts.PolicyTextExpert", "init_args": {"policy": network}}
    knobs = {"policy": policy, "tokenizer": {"class_path": "data_modules.text.ByteTokenizer"}}
    provider = {"class_path": "data_modules.feedback.providers.LocalJudge", "init_args": knobs}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(provider))
    (tmp_path / "replies.jsonl").write_text('{"prompt": "say ant", "responses": ["ant", "bee"]}\n')
    words = ["judge", str(tmp_path / "replies.jsonl"), "--config", str(tmp_path / "judge.yaml")]
    assert main([*words, "--out", str(tmp_path / "judged.jsonl")]) == 0, capsys.readouterr().err
    (line,) = read(tmp_path / "judged.jsonl")
    assert len(line.score) == 2 and all(0 < score < 1 for score in line.score)
