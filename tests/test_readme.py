"""Everything the README says to do is done here, in an empty folder beside a copy of `conf/`."""

import ast
import json
import pkgutil
import re
import shlex
import shutil
import threading
from pathlib import Path
from zlib import crc32

import pytest
import torch
import yaml

from benchmarks.intervals import rounded_down
from data_modules.feedback import read
from data_modules.feedback.__main__ import _parser as feedback_parser
from data_modules.feedback.__main__ import main as feedback
from lightning_nlf.cli.command_line import main
from lightning_nlf.example_batch import example_batch
from lightning_nlf.networks import GRUPolicy
from tests.data_modules.feedback.providers.conftest import Script, asked_of, chat
from tests.documents import ROOT, commands, shell

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the yamls, in which the main job has been run by the README's own command."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "conf", folder / "conf")
    install_and_fit = blocks("bash")[0]
    assert install_and_fit.startswith("pip install -e . && ")
    shell(install_and_fit.split("&&")[1], folder)
    return folder


@pytest.mark.slow
def test_the_main_job_leaves_what_the_table_says(project):
    run = project / "outputs" / "injection-seed0"
    for name in ("best.ckpt", "last.ckpt"):
        assert (run / "checkpoints" / name).is_file()
    for name in ("config.yaml", "raw/injection.yaml", "exhibits/learning_curve.png", "journal.jsonl"):
        assert (run / name).stat().st_size > 0
    assert len(list((run / "exhibits").glob("*.gif"))) == 2 and list((run / "provenance").iterdir())


@pytest.mark.slow
def test_the_main_job_balances_the_pole(project):
    """Ten deterministic episodes of the best policy, on the seeds that are kept for the end."""
    said = shell("python -m lightning_nlf test --config conf/injection.yaml --ckpt_path best", project)
    (value,) = re.findall(r"test/return\s+│\s+([\d.,]+)", said)
    assert float(value.replace(",", "")) >= 950


def logged_run(folder, name):
    """A client of the folder's database, and the one run of this name."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lightning_nlf"]
    (run,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]
    return client, run


def artifacts(client, run, *folders):
    return {artifact.path for folder in folders for artifact in client.list_artifacts(run.info.run_id, folder)}


@pytest.mark.slow
def test_the_main_job_is_in_mlflow(project):
    client, run = logged_run(project, "injection-seed0")
    assert run.info.status == "FINISHED" and run.data.metrics["val/return"] >= 950
    assert {"env_steps", "iteration", "expert_steps", "labels", "train/imitation"} <= run.data.metrics.keys()
    assert {"checkpoint/best_sha256", "checkpoint/last_sha256"} <= run.data.tags.keys()
    logged = artifacts(client, run, "", "checkpoints", "exhibits", "provenance", "raw")
    names = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "exhibits/evaluation.gif", "exhibits/learning_curve.png"]
    names += ["provenance/command.txt", "provenance/packages.txt", "raw/injection.yaml", "config.yaml"]
    assert set(names) <= logged


@pytest.mark.slow
def test_the_five_lines_balance_the_pole_in_plain_gymnasium(project):
    (code,) = [block for block in blocks("python") if "gymnasium.make" in block]
    (project / "five_lines.py").write_text(code)
    assert float(shell("python five_lines.py", project)) >= 950


@pytest.mark.slow
def test_the_commands_on_a_finished_run(project):
    """Each line of the second block, but the page server, which is only asked what it would start."""
    (block,) = [block for block in blocks("bash") if "--ckpt_path last" in block]
    lines = commands(block)
    assert len(lines) == 5
    for line in lines:
        shell(line + " --print" if ".tracking ui" in line else line, project)
    assert "return" in shell(lines[2], project)


@pytest.mark.slow
def test_rlhf_in_six_commands(tmp_path):
    """Each of them, the fits cut down to seconds; what the last one says of the policy is there."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (block,) = [block for block in blocks("bash") if "conf/rlhf/sft.yaml" in block]
    lines = commands(block)
    assert [line.split()[2] for line in lines] == ["lightning_nlf", "lightning_nlf", "data_modules.feedback"] + [
        "lightning_nlf"
    ] * 3
    short = "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1"
    for line in lines:
        said = shell(f"{line} {short}" if " fit " in line else line, tmp_path)
    assert "test/true_reward" in said
    assert (tmp_path / "outputs/rlhf_ppo-seed0/huggingface/model.safetensors").is_file()
    client, run = logged_run(tmp_path, "rlhf_ppo-seed0")
    assert run.info.status == "FINISHED"
    names = {"kl", "beta", "clip_fraction", "explained_variance", "finished", "true_reward", "loss"}
    wanted = {f"train/{name}" for name in names} | {"val/true_reward", "val/return_sampled", "val/kl_sampled"}
    assert wanted | {"env_steps", "iteration", "feedback_calls"} <= run.data.metrics.keys()
    assert run.data.metrics["train/beta"] > 0 and 0 <= run.data.metrics["train/clip_fraction"] <= 1
    kept = dict(
        line.split(": ") for line in (tmp_path / "outputs/rlhf_ppo-seed0/provenance/data.txt").read_text().splitlines()
    )
    assert kept.keys() == {"data_digest", "tokenizer_digest"} and kept.items() <= run.data.tags.items()
    logged = artifacts(client, run, "exhibits", "exhibits/transcripts", "huggingface", "checkpoints", "provenance")
    tables = {"exhibits/transcript.html", "exhibits/transcript.md", "exhibits/transcripts/iteration-00001.html"}
    model = {"huggingface/config.json", "huggingface/model.safetensors", "huggingface/tokenizer.json"}
    assert tables | model | {"checkpoints/last.ckpt", "provenance/data.txt"} <= logged
    _, tuned = logged_run(tmp_path, "sft-seed0")
    assert {"val/imitation", "val/return", "val/part/sentiment", "train/imitation"} <= tuned.data.metrics.keys()
    assert tuned.data.tags["tokenizer_digest"] == kept["tokenizer_digest"]
    assert tuned.data.tags["data_digest"] != kept["data_digest"]
    assert "exhibits/transcript.html" in artifacts(client, tuned, "exhibits")


@pytest.fixture
def judge():
    """A server whose opinion of anything is a number that comes from the question; what it is asked stays in it."""
    script = Script()

    def answer(body):
        first = crc32(asked_of(body).encode()) % 98 / 100 + 0.01
        return chat("1", [{"1": first, "2": 1 - first}])

    script.answer = answer
    thread = threading.Thread(target=script.server.serve_forever, args=(0.01,))
    thread.start()
    yield script
    script.server.shutdown()
    thread.join()
    script.server.server_close()


@pytest.mark.slow
def test_ai_feedback(tmp_path, monkeypatch, judge, capsys):
    """Both blocks, command by command, the fits cut down to seconds; then a duel of two policies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_NLF_RUN_DIR", "")
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    short = "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --data.minibatches 1"
    quiet = " --trainer.logger false --trainer.enable_progress_bar false"

    def run(line):
        if " -m lightning_nlf " not in line:
            asks = " judge " in line or " constitution " in line
            assert feedback(shlex.split(line)[3:] + (["--set", f"endpoint.url={judge.url}"] if asks else [])) == 0
            return
        few = "--data.evaluation_prompts 24" if " predict " in line else short
        few += f" --data.reward.endpoint.url {judge.url} --data.prompts 2" if "rlaif_direct" in line else ""
        few += " --data.evaluation_prompts 2" if "ppo" in line or "direct" in line else ""
        main(shlex.split(line + " " + few + quiet)[3:])

    run("python -m lightning_nlf fit --config conf/rlhf/sft.yaml --data.rows 64")
    blocks_of_it = [block for block in blocks("bash") if "data_modules.feedback judge outputs" in block]
    assert len(blocks_of_it) == 2
    for line in commands("".join(blocks_of_it)):
        run(line)
    for name in ("rlaif_reward", "rlaif_ppo", "rlaif_direct", "constitution_sft", "principled"):
        assert Path(f"outputs/{name}-seed0/checkpoints/last.ckpt").is_file(), name
    pairs = Path("outputs/pairs_sample-seed0")
    judged, principled = read(pairs / "judged.jsonl"), read(pairs / "principled.jsonl")
    two = [[line.preference for line in said if len(line.responses) == 2] for said in (judged, principled)]
    assert len(judged) == 24 and len(two[0]) > 12 and None not in two[0] + two[1] and two[0] != two[1]
    assert all(line.expected and len(line.meta["revisions"]) == 4 for line in read(pairs / "revisions.jsonl"))

    weights = "--model.policy.weights outputs/rlaif_ppo-seed0/checkpoints/last.ckpt"
    sample = f"python -m lightning_nlf predict --config conf/feedback/pairs_sample.yaml {weights}"
    run(f"{sample} --run_dir outputs/new_sample-seed0")
    (duel,) = [block for block in blocks("bash") if "duels.jsonl" in block]
    for line in commands(duel):
        run(line)
    assert re.search(r"preferences: \d+, .* A wins [\d.]+ of them against B", capsys.readouterr().out)


def test_the_lines_of_feedback_are_such_lines(tmp_path, capsys):
    (block,) = blocks("jsonl")
    (tmp_path / "said.jsonl").write_text(block)
    triple, order = read(tmp_path / "said.jsonl")
    assert triple.score and triple.critique and triple.expected and triple.source == "ana" and not triple.ranking
    assert order.ranks == (2, 1, 0) and order.score is order.critique is order.expected is None
    assert feedback(["check", str(tmp_path / "said.jsonl")]) == 0 and "2 judgements" in capsys.readouterr().out


def test_the_round_of_feedback_is_four_commands():
    """What one leaves is what the next one reads. `tests/data_modules/feedback/people/test_round_in_browser.py` goes
    through them, with a person at the page.
    """
    (block,) = [block for block in blocks("bash") if "data_modules.feedback pull" in block]
    ask, ui, pull, fit = commands(block)
    asking, learning = (yaml.safe_load(Path(ROOT / line.split()[-1]).read_text()) for line in (ask, fit))
    options = feedback_parser().parse_args(shlex.split(pull)[3:])
    assert asking["trainer"]["callbacks"][0]["init_args"]["queue"] == options.queue
    assert learning["data"]["init_args"]["path"] == str(options.out)
    assert ui == "python -m lightning_nlf.tracking ui outputs"
    browser = (ROOT / "tests/data_modules/feedback/people/test_round_in_browser.py").read_text()
    for word in (ask.split()[-1], options.queue, str(options.out), fit.split()[-1]):
        assert f'"{word}"' in browser


def test_the_table_of_methods_says_what_they_ask_for():
    """Scores, R, or critiques alone: as the yaml has it."""
    rows = re.findall(r"\| (c|c, R) \| `(conf/feedback/\w+\.yaml)` \|", README)
    assert len(rows) == 12
    assert [name for asked, name in rows if ("scored: false" in (ROOT / name).read_text()) != (asked == "c")] == []


@pytest.mark.slow
def test_an_objective_in_three_steps(project):
    (code,) = [block for block in blocks("python") if "FrugalPolicy" in block]
    (yaml,) = [block for block in blocks("yaml") if "frugal.FrugalPolicy" in block]
    (command,) = [block for block in blocks("bash") if "frugal.yaml" in block]
    (project / "frugal.py").write_text(code)
    (project / "frugal.yaml").write_text(yaml)
    shell(f"{command.strip()} --config conf/debug.yaml", project)
    (journal,) = (project / "outputs").glob("frugal*/journal.jsonl")
    assert '"train/force"' in journal.read_text()


def test_an_objective_on_language():
    """The price is .01 a token, taken off before the group's baseline; one term more than GRPO has."""
    (code,) = [block for block in blocks("python") if "BriefPolicy" in block]
    names = {}
    exec(code, names)
    knobs = {
        "baseline": "group_mean",
        "advantage_scale": "none",
        "normalize_advantages": False,
        "gamma": 1.0,
        "beta": 0.0,
    }
    module = names["BriefPolicy"](policy=GRUPolicy(16, 8), **knobs)
    batch = example_batch(module.policy, module.policy)
    prepared = module.prepare(batch)
    price = (batch.rewards - prepared.rewards).sum(1)
    torch.testing.assert_close(price, 0.01 * batch.valid.sum(1))
    assert set(module.losses(prepared)) == {"policy", "brevity"}


def test_all_code_that_the_readme_names_is_there():
    named = sorted(set(re.findall(r"\b((?:lightning_nlf|data_modules)(?:\.\w+)+)", README)))
    assert len(named) > 10
    for name in named:
        pkgutil.resolve_name(name)


def test_every_yaml_the_readme_names_is_there():
    named = set(re.findall(r"conf/[\w/]+\.yaml", README))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def yamls():
    return sorted((ROOT / "conf").rglob("*.yaml"))


def test_every_yaml_has_a_row_in_the_readme():
    names = [path.relative_to(ROOT).as_posix() for path in yamls()]
    assert [name for name in names if name not in README] == []


def quoted():
    """What stands in backticks; a bare yaml behind a command is that command with it."""
    for line in README.splitlines():
        before = ""
        for words in re.findall(r"`([^`]+)`", line):
            if words.startswith("python -m"):
                before = words.split(" conf/")[0] if "--config conf/" in words else ""
            elif before and re.fullmatch(r"conf/\S+\.yaml", words):
                words = f"{before} {words}"
            yield words


def named(module):
    """All commands of a module, in a line or in a block."""
    found = [words for words in quoted() if words.startswith(f"python -m {module} ")]
    found += [line for block in blocks("bash") for line in commands(block) if line.startswith(f"python -m {module} ")]
    return sorted(set(found))


RUNS = [command.split(None, 3)[3] for command in named("lightning_nlf") if "conf/" in command]


@pytest.mark.parametrize("command", RUNS)
def test_the_commands_of_the_table_of_rows_build(command, monkeypatch, capsys):
    """With another word misspelt, or a knob that is gone, they would not. What needs another run first is only read."""
    monkeypatch.chdir(ROOT)
    (source,) = set(re.findall(r"--config (conf/\S+)", command)) - {"conf/debug.yaml"}
    if not re.search(r"^[^#]*(outputs|my)/|ckpt_path best", f"{command}\n{(ROOT / source).read_text()}", re.M):
        main(command.split(), run=False)
        return
    with pytest.raises(SystemExit) as ending:
        main([*command.split(), "--print_config"])
    assert ending.value.code == 0, capsys.readouterr().err


def test_the_commands_that_look_after_feedback_are_there():
    found = named("data_modules.feedback")
    assert len(found) > 5
    for command in found:
        feedback_parser().parse_args(shlex.split(command)[3:])


def results(name):
    return (ROOT / "benchmarks" / "results" / f"{name}.md").read_text().strip().split("\n\n")


@pytest.mark.parametrize(
    "name", ["configs", "bodies", "speedup", "rlhf", "process", "maze", "feedback_convergence", "feedback_comparison"]
)
def test_tables_in_the_readme_are_those_of_the_results_files(name):
    """To the letter as the benchmark wrote them; the long list of what was tuned stays where it is."""
    tables = [part for part in results(name) if part.startswith("|") and "chosen of 16 cells" not in part]
    assert tables and [table for table in tables if table not in README] == []


def test_the_claims_of_speed_in_the_readme_are_those_that_were_measured():
    assert results("throughput")[0] in README and results("text_speed")[0] in README


def test_every_yaml_says_what_it_reached():
    """The header of a run quotes the figure of its row in the results files, or says that there is none, and why."""
    tables = ("configs", "bodies", "speedup", "rlhf", "process", "maze")
    parts = [part for name in tables for part in results(name) if part.startswith("|")]
    rows = [row for part in parts for row in re.findall(r"^\| ([\w/]+) \|(.*)\|$", part, re.M)]
    figures: dict[str, list[str]] = {}
    for name, columns in rows:
        if (ROOT / f"conf/{name}.yaml").is_file():
            figures.setdefault(name, re.findall(r"\S+ \[\S+ \S+\]", columns))
    texts = {path.relative_to(ROOT / "conf").with_suffix("").as_posix(): path.read_text() for path in yamls()}
    runs = {name: text for name, text in texts.items() if "\nmodel:" in text}  # all but overlays and providers
    assert figures.keys() <= runs.keys()
    quotes = {name: own[:1] for name, own in figures.items()} | arms_of_feedback()
    for name, text in runs.items():
        header = " ".join(line.lstrip("# ") for line in text.split("seed_everything")[0].splitlines())
        reached = quotes.get(name, ["Not measured yet", "Not measured: what people answer"])
        if name.startswith("chat/"):  # its figures are those of test_docs.py
            reached = [*reached, "benchmarks/own_prompts.py"]
        assert any(said in header for said in reached), name


def arms_of_feedback():
    """What each yaml of `benchmarks/feedback.py` may quote: "arm end" of an arm that it has, as it samples."""
    studies = yaml.safe_load((ROOT / "benchmarks" / "feedback.yaml").read_text())
    quotes: dict[str, list[str]] = {}
    for study in ("convergence", "comparison"):
        table = results(f"feedback_{study}")[0]
        for arm, own in studies[study]["arms"].items():
            (sampled,) = re.findall(rf"^\| {arm} \| [^|]+ \| ([^|]+) \|", table, re.M)
            quotes.setdefault(f"feedback/{own.get('yaml', 'feedback_sft')}", []).append(f"{arm} {sampled}")
    return quotes


@pytest.mark.parametrize("name", ["joint", "injection", "dagger", "bc"])
def test_yamls_claim_the_lower_bounds_of_the_study(name):
    summary = json.loads((ROOT / "benchmarks" / "results" / "speedup.json").read_text())["summary"][f"{name}/all"]
    mode, sampled = (summary[measure]["corrected"][1] for measure in ("sust", "sto"))
    claim = f"at least {rounded_down(mode)}× tuned REINFORCE, as it samples {rounded_down(sampled)}×"
    assert claim in (ROOT / "conf" / f"{name}.yaml").read_text()


def test_pictures_are_there():
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture


# ---- the glossary

GLOSSARY = set(re.findall(r"`((?:(?:train|val|system)/)?[a-z][\w/]*)", README.split("## Glossary of metrics")[1]))
FOLDERS = (ROOT / "lightning_nlf", ROOT / "data_modules")
OURS = [ast.parse(path.read_text()) for folder in FOLDERS for path in folder.rglob("*.py")]


def told(tree, what):
    """The names in what a DataModule puts into its `counters` or `statistics`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Attribute) and target.attr == what:
                keys = [key for each in ast.walk(node.value) if isinstance(each, ast.Dict) for key in each.keys]
                texts = [each.value for key in keys if key for each in ast.walk(key) if isinstance(each, ast.Constant)]
                yield from (text for text in texts if isinstance(text, str))


def noted(tree):
    """What an objective notes, and the names of its terms: given at once, by a class, or by a function of figures."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("self.note", "Term"):
            yield from (name.value for name in node.args[:1] if isinstance(name, ast.Constant))
        elif isinstance(node, ast.FunctionDef) and node.name.endswith("_figures"):
            dicts = [each for each in ast.walk(node) if isinstance(each, ast.Dict)]
            yield from (key.value for each in dicts for key in each.keys if isinstance(key, ast.Constant))
        elif isinstance(node, ast.ClassDef):
            texts = [
                each.value
                for each in node.body
                if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "term"
            ]
            yield from (text.value for text in texts if isinstance(text, ast.Constant))


def test_every_metric_is_in_the_glossary():
    metrics = {f"train/{name}" for tree in OURS for name in [*noted(tree), *told(tree, "statistics")]}
    counters = {name for tree in OURS for name in told(tree, "counters")}
    counters -= {"calls", "cached", "retries", "prompt_tokens", "completion_tokens"}  # of an endpoint, printed alone
    assert len(metrics) > 40 and len(counters) > 5
    assert sorted((metrics | counters) - GLOSSARY) == []


def test_every_name_of_the_glossary_is_in_the_code():
    source = "\n".join(ast.unparse(tree) for tree in OURS)
    last = {name: name.rpartition("/")[2].removesuffix("_sampled") for name in GLOSSARY}
    assert [name for name, word in sorted(last.items()) if not re.search(rf"\b{word}\b", source)] == []
