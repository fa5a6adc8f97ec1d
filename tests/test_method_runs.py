"""Pages on families of methods and on feedback are done as they say, the fits cut down to seconds."""

import re
import shlex

import pytest
import yaml

from data_modules.feedback import read
from data_modules.feedback.__main__ import _parser as feedback_parser
from tests.documents import ROOT, commands, page_blocks
from tests.journey import Journey, in_folder
from tests.test_method_pages import DOCS, PAGES, name_of

QUIET = "--trainer.logger false --trainer.enable_progress_bar false"
SHORT = "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1"
FEW = {
    "PendulumDataModule": "--data.evaluation_episodes 2",
    "DemonstrationsDataModule": "--data.rows 960 --data.minibatches 30 --data.evaluation_prompts 2",
    "FeedbackDataModule": "--data.minibatches 1 --data.evaluation_prompts 2",
    "TextDataModule": "--data.prompts 4 --data.minibatches 1 --data.evaluation_prompts 2",
    "RevisionDataModule": "--data.prompts 4 --data.evaluation_prompts 2",
}


class Project(Journey):
    """A folder with `conf/` alone. A command that an earlier page gave to the letter is not run again."""

    def furnish(self) -> None:
        pass

    def cut_down(self, words: list[str]) -> list[str]:
        if words[0] == "describe":
            return []
        config = yaml.safe_load((self.folder / words[words.index("--config") + 1]).read_text())
        source = config["data"]["class_path"].rpartition(".")[2]
        few = FEW[source] if words[0] == "fit" else "--data.evaluation_prompts 48"
        pairs = zip(*[iter(few.split())] * 2, strict=True)
        smaller = [word for name, value in pairs if name not in words for word in (name, value)]
        return [*QUIET.split(), *(SHORT.split() if words[0] == "fit" else []), *smaller]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    yield from in_folder(Project, tmp_path_factory.mktemp("project"))


LEFT = {
    "reward_models": ["outputs/reviews/reward_davidson-seed0/exhibits/reliability.md"],
    "rlhf": ["outputs/reviews/ppo-seed0/huggingface/model.safetensors"],
    "critiques": ["outputs/shuffled/exhibits/critiques.html"],
    "ai": [
        "outputs/reviews/rlaif_reward-seed0/checkpoints/last.ckpt",
        "outputs/rlaif_ppo-seed0/checkpoints/last.ckpt",
        "outputs/reviews/rlaif_direct-seed0/checkpoints/last.ckpt",
        "outputs/reviews/constitution_sft-seed0/checkpoints/last.ckpt",
        "outputs/principled-seed0/checkpoints/last.ckpt",
    ],
}
TO_RUN = [page for page in PAGES if any(block.is_run for block in page_blocks(page.read_text()))]


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN, ids=name_of)
def test_a_page_runs(page, project):
    project.do("\n".join(before_of(page)))
    project.do(page.read_text())
    assert [path for path in LEFT.get(page.stem, []) if not (project.folder / path).exists()] == []


def before_of(page):
    """Blocks of other pages that this one says to run before."""
    start = "```bash\npython -m lightning_nlf fit --config conf/reviews/sft.yaml\n```\n"
    return [start] if page.stem == "ai" else []


@pytest.mark.slow
def test_a_judge_labels_pairs_and_compares_policies(project, capsys):
    """What `ai.md` leaves in its files; then its commands on win rates, with the replies of another policy."""
    page = DOCS / "feedback/ai.md"
    project.do("\n".join([*before_of(page), page.read_text()]))
    folder = project.folder / "outputs/reviews/pairs_sample-seed0"
    by_judge, by_principle = (read(folder / f"{name}.jsonl") for name in ("judged", "principled"))
    files = (by_judge, by_principle)
    first, second = ([line.preference for line in lines if len(line.responses) == 2] for lines in files)
    assert len(by_judge) == 48 and len(first) > 12 and None not in first + second and first != second
    assert all(line.expected and len(line.meta["revisions"]) == 4 for line in read(folder / "revisions.jsonl"))
    sample = "python -m lightning_nlf predict --config conf/reviews/sample.yaml --data.replies 2"
    weights = "--model.policy.weights outputs/rlaif_ppo-seed0/checkpoints/last.ckpt"
    project.run(f"{sample} {weights} --run_dir outputs/new_sample-seed0")
    (block,) = [block for block in page_blocks(page.read_text()) if "duels.jsonl" in block.text]
    for command in commands(block.text):
        project.run(" ".join(command.split()))
    assert re.search(r"preferences: \d+, .* A beats B in [\d.]+ of them", capsys.readouterr().out)


def test_the_lines_of_feedback_are_such_lines(tmp_path):
    (block,) = [block for block in page_blocks((DOCS / "feedback/file.md").read_text()) if block.language == "jsonl"]
    (tmp_path / block.file).write_text(block.text)
    triple, order = read(tmp_path / block.file)
    assert triple.score and triple.critique and triple.expected and triple.source == "ana" and not triple.ranking
    assert order.ranks == (2, 1, 0) and order.score is order.critique is order.expected is None


def test_a_round_of_feedback_is_four_commands():
    """What one leaves is what the next one reads. `tests/data_modules/feedback/people/test_round_in_browser.py` goes
    through them, with a person at the page.
    """
    blocks = page_blocks((DOCS / "feedback/people.md").read_text())
    (block,) = [block for block in blocks if "pull --queue sourced-answers" in block.text]
    ask, ui, pull, fit = commands(block.text)
    asking, learning = (yaml.safe_load((ROOT / line.split()[-1]).read_text()) for line in (ask, fit))
    options = feedback_parser().parse_args(shlex.split(pull)[3:])
    assert asking["trainer"]["callbacks"][0]["init_args"]["queue"] == options.queue
    assert learning["data"]["init_args"]["path"] == str(options.out)
    assert ui == "python -m lightning_nlf.tracking ui outputs"
    browser = (ROOT / "tests/data_modules/feedback/people/test_round_in_browser.py").read_text()
    for word in (ask.split()[-1], options.queue, str(options.out), fit.split()[-1]):
        assert f'"{word}"' in browser
