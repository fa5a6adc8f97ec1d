"""The command line, from a yaml to a checkpoint and back, mostly in this process."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.conf_headers import headers
from data_modules.feedback import read, write
from data_modules.feedback.__main__ import main as feedback
from lightning_nlf import callbacks
from lightning_nlf.cli.command_line import main
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.moved_yamls import arguments as words_of
from lightning_nlf.networks import HuggingFacePolicy
from lightning_nlf.objectives import InjectionPolicy
from tests.my_folder import my_folder

ROOT = Path(__file__).parents[3]
CONF = ROOT / "conf"
DEBUG = CONF / "overlays" / "debug.yaml"


def text_of(experiment: str) -> str:
    """The settings of a yaml, without its comments, and the flags of a variant."""
    _, path, *flags = words_of(CONF, experiment)
    lines = [line for line in Path(path).read_text().splitlines() if not line.startswith("#")]
    return "\n".join([*lines, *flags])


# yamls, and variants by the name of their run folder; all but providers of feedback, which are no runs
EXPERIMENTS = [header.name for header in headers() if "\nmodel:" in f"\n{text_of(header.name)}"]
# prompts without a reward, for `predict` only
UNPAID = ["chat/ask", "chat/sample"]
# that ask no server, and learn from no recorded episode, which people see in tests/data_modules/feedback/people
ALONE = [
    name
    for name in EXPERIMENTS
    if "endpoint:" not in text_of(name) and "episode_reviews" not in text_of(name) and name not in UNPAID
]
REVIEWS = {"outputs/reviews.jsonl": "outputs/answers/sample-seed0/judged.jsonl"}  # a rule's, in the place of people's
INJECTION = ["fit", "--config", str(CONF / "injection.yaml")]
QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_NLF_RUN_DIR", "")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


@pytest.fixture(scope="module")
def run_output(tmp_path_factory):
    """A function that makes, once, a file or folder which the run of another yaml saves."""
    cache: dict[tuple[str, str], Path] = {}

    def file(path: str) -> Path:
        if path == "my":
            if ("my", "my") not in cache:
                cache["my", "my"] = my_folder(tmp_path_factory.mktemp("my"))
            return cache["my", "my"]
        run, below = re.fullmatch(r"outputs/(.+-seed\d+[\w-]*)/(.+)", path).groups()
        source = run.rpartition("-seed")[0]
        if (source, path) not in cache:
            folder = tmp_path_factory.mktemp("made") / run
            bring_needed(source, file)
            (sampled if path.endswith(".jsonl") else briefly_trained)(source, folder)
            cache[source, path] = folder / below
        return cache[source, path]

    return file


def bring_needed(source: str, file) -> None:
    """What a yaml or variant reads of others' runs, and of a team's own folder, where it looks for it."""
    text = text_of(source).replace("${seed_everything}", "0")
    if " my/" in text and not Path("my").exists():
        shutil.copytree(file("my"), "my")
    for path in set(re.findall(r"outputs/[\w./-]+", text)):
        folder = not Path(path).suffix and Path(path).name != "huggingface"  # which whoever wants it makes
        if not folder and not Path(path).exists() and path != "outputs/episode_reviews.jsonl":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            output = file(REVIEWS.get(path, path))
            (shutil.copytree if output.is_dir() else shutil.copy)(output, path)


def brief(source: str) -> list[str]:
    """A fit of seconds by any yaml: one epoch, and no more than a few demonstrations, where those are imitated."""
    flags, text = [*words_of(CONF, source), "--config", str(DEBUG), "--trainer.max_epochs", "1"], text_of(source)
    if re.search(r"class_path: \S+\.(Demonstrations|Expected)DataModule", text):
        flags += ["--data.rows", "64", "--data.minibatches", "1"]
    if "data_modules.text.PromptFile" in text:
        flags += ["--data.prompts", "4", "--data.max_new", "16", "--data.evaluation_prompts", "4"]
    if "draws:" in text:
        flags += ["--data.task.draws", "1"]
    return flags


def briefly_trained(source: str, folder: Path) -> None:
    least = ["--data.minibatches", "1", "--data.passes", "1"]
    main(["fit", *brief(source), *least, *QUIET, "--run_dir", str(folder)])


def sampled(source: str, folder: Path) -> None:
    """Replies to a few prompts, ranked, and with one of them as what was expected; answers judged by their rule."""
    few = ["--data.evaluation_prompts", "400", "--data.max_new", "16"]
    main(["predict", *words_of(CONF, source), *few, *QUIET, "--run_dir", str(folder)])
    replies = str(folder / "predictions/replies.jsonl")
    by = {name: ["rank", replies, "--by", "score"] for name in ("rankings.jsonl", "judged.jsonl")}
    if source == "answers/sample":
        by["judged.jsonl"] = ["judge", replies, "--config", str(CONF / "providers" / "rule.yaml")]
        # Who has hardly learned spells special tokens, which no prompt of a critique may quote.
        write(replies, [line for line in read(replies) if "<" not in "".join(line.responses)])
    for name, command in by.items():
        assert feedback([*command, "--out", str(folder / name)]) == 0
    revised = [replace(line, expected=line.responses[0]) for line in read(replies)]
    write(folder / "revisions.jsonl", revised)


@pytest.fixture
def experiment(request, run_output):
    """A yaml; the files that it names, of runs of other yamls, lie where it looks for them."""
    bring_needed(request.param, run_output)
    return request.param


def command(*args: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "lightning_nlf", *args], capture_output=True, text=True, env=os.environ | environment
    )


# ---- the configuration


def test_interpolation_follows_an_overlay_and_a_flag():
    Path("overlay.yaml").write_text("seed_everything: 5\n")
    assert main(INJECTION, run=False).datamodule.seed == 0
    overlaid = [*INJECTION, "--config", "overlay.yaml"]
    assert main(overlaid, run=False).datamodule.seed == 5
    assert main([*overlaid, "--seed_everything", "3"], run=False).datamodule.seed == 3
    assert main([*overlaid, "--data.seed", "7"], run=False).datamodule.seed == 7


def test_the_seed_is_always_applied():
    def weights(*flags: str) -> torch.Tensor:
        torch.manual_seed(123)
        return main([*INJECTION, *flags], run=False).model.policy.net[0].weight

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights("--seed_everything", "1"))


def test_an_overlay_can_swap_the_model():
    overlay = yaml.safe_load((CONF / "pendulum" / "reinforce.yaml").read_text())
    Path("overlay.yaml").write_text(yaml.safe_dump({"model": overlay["model"]}))
    model = main([*INJECTION, "--config", "overlay.yaml"], run=False).model
    assert type(model).__name__ == overlay["model"]["class_path"].rpartition(".")[2] != "InjectionPolicy"


@pytest.mark.parametrize(
    "experiment, network, swapped",
    [("reviews/reward", "reward", "BradleyTerryReward"), ("reviews/dpo", "policy", "RankedDPOPolicy")],
    indirect=["experiment"],
)
def test_a_flag_can_swap_the_objective(experiment, network, swapped):
    def built(*flags: str):
        cli = main(["fit", *words_of(CONF, experiment), *flags], run=False)
        return cli.model, cli.options.model.init_args[network].init_args.weights

    before, path = built()
    assert path == "outputs/reviews/sft-seed0/checkpoints/best.ckpt"
    for flag in ("--model", "--model.class_path"):
        after, kept_path = built(flag, f"lightning_nlf.objectives.{swapped}")
        assert type(after).__name__ == swapped != type(before).__name__
        assert kept_path == path
        before_state, after_state = (getattr(model, network).decoder.state_dict() for model in (before, after))
        assert before_state.keys() == after_state.keys() and all(
            torch.equal(before_state[key], after_state[key]) for key in before_state
        )


@pytest.mark.parametrize("steps, read", [(7, 7), ("${trainer.max_epochs}", 6)])
def test_a_swapped_class_keeps_the_arguments_that_it_accepts(steps, read):
    schedule = {
        "class_path": "torch.optim.lr_scheduler.LinearLR",
        "init_args": {"end_factor": 0.5, "total_iters": steps},
    }
    Path("overlay.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"lr_scheduler": schedule}}}))
    flags = ["--trainer.max_epochs", "6", "--model.lr_scheduler", "torch.optim.lr_scheduler.ConstantLR"]
    swapped = main([*INJECTION, "--config", "overlay.yaml", *flags], run=False).options.model.init_args.lr_scheduler
    assert swapped.class_path.endswith("ConstantLR")
    assert swapped.init_args.total_iters == read and "end_factor" not in swapped.init_args


@pytest.mark.parametrize("experiment", ["reviews/dpo"], indirect=True)
def test_null_of_a_flag_is_null_in_a_class_inside_a_class(experiment, capsys):
    dpo = ["fit", *words_of(CONF, experiment)]
    adam = ["--model.lr", "null", "--model.optimizer", "torch.optim.Adam", "--model.optimizer.foreach", "null"]
    shape = ["--model.policy.shape.layers", "1", "--model.policy.shape.width", "16"]
    flags = ["--model.policy.weights", "null", *shape, *adam]
    arguments = main([*dpo, *flags], run=False).options.model.init_args
    assert arguments.policy.init_args.weights is None and arguments.optimizer.init_args.foreach is None
    with pytest.raises(SystemExit):
        main([*dpo, "--model.policy.temperature", "null"], run=False)
    assert "--model.policy.temperature: expected a number above 0" in capsys.readouterr().err


def test_trainer_defaults_and_their_override():
    trainer = main(INJECTION, run=False).trainer
    assert (trainer.log_every_n_steps, trainer.num_sanity_val_steps, trainer.num_devices) == (10, 0, 1)
    assert trainer.logger.save_dir == trainer.default_root_dir == trainer.logger.log_dir
    assert main([*INJECTION, "--trainer.log_every_n_steps", "3"], run=False).trainer.log_every_n_steps == 3
    flags = ["--run_dir", "mine", "--trainer.logger.experiment", "other"]
    logger = main([*INJECTION, *flags], run=False).trainer.logger
    assert (logger._experiment, logger.save_dir) == ("other", "mine")


def test_callbacks_are_always_on_and_once():
    Path("overlay.yaml").write_text(
        "trainer:\n  callbacks:\n"
        "    - class_path: lightning_nlf.callbacks.LastCheckpoint\n      init_args: {every_n_iterations: 7}\n"
    )
    active = main([*INJECTION, "--config", "overlay.yaml"], run=False).trainer.callbacks
    for name in ("FitProgress", "Exhibits", "Provenance", "BestCheckpoint", "LastCheckpoint"):
        assert sum(isinstance(callback, getattr(callbacks, name)) for callback in active) == 1, name
    active = main([*INJECTION, "--trainer.enable_checkpointing", "false", *QUIET], run=False).trainer.callbacks
    assert {type(callback).__name__ for callback in active} >= {"Exhibits", "Provenance"}
    assert not any(isinstance(callback, (callbacks.LastCheckpoint, callbacks.FitProgress)) for callback in active)


def test_building_alone_leaves_no_folder():
    main(INJECTION, run=False)
    assert not Path("outputs").exists()


def test_all_values_can_be_printed_and_read_back(capsys):
    with pytest.raises(SystemExit) as ending:
        main([*INJECTION, "--seed_everything", "4", "--print_config"])
    assert ending.value.code in (0, None)
    Path("all.yaml").write_text(capsys.readouterr().out)
    assert main(["fit", "--config", "all.yaml"], run=False).datamodule.seed == 4


def test_help_of_a_stage_lists_its_flags(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["fit", "--help"])
    printed = capsys.readouterr().out
    assert ending.value.code in (0, None)
    for flag in ("--run_dir", "--seed_everything", "--ckpt_path", "--trainer.max_epochs", "--model", "--data"):
        assert flag in printed


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str, indirect=True)
def test_every_yaml_builds(experiment):
    cli = main(["fit", *words_of(CONF, experiment)], run=False)
    assert isinstance(cli.model, ObjectiveModule)
    assert cli.files and f"outputs/{Path(cli.files[0]).relative_to(CONF).with_suffix('')}-seed0" in str(cli.run_dir)


# ---- a run


def same_policy(first: torch.nn.Module, second: torch.nn.Module, batch) -> bool:
    with torch.no_grad():
        outputs = [module.eval().policy(batch.obs, batch.valid) for module in (first, second)]
    logits = [x.logits if hasattr(x, "logits") else torch.cat([x.mean, x.stddev], -1) for x in outputs]
    return torch.equal(*logits)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ALONE, ids=str, indirect=True)
def test_every_yaml_trains_and_its_checkpoint_is_the_model(experiment):
    cli = main(["fit", *brief(experiment), *QUIET, "--run_dir", "run"])
    reloaded = ObjectiveModule.load_from_checkpoint("run/checkpoints/last.ckpt")
    assert type(reloaded) is type(cli.model) and cli.trainer.global_step > 0
    state = cli.model.state_dict()
    assert state.keys() == reloaded.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in reloaded.state_dict().items())
    if hasattr(cli.model, "policy"):
        loaders = cli.datamodule.val_dataloader()
        batch = next(iter(loaders[0])) if loaders else cli.datamodule.rows[:8]
        assert same_policy(cli.model, reloaded, batch)
        with torch.no_grad():
            next(reloaded.policy.parameters()).add_(1)
        assert not same_policy(cli.model, reloaded, batch)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", UNPAID, ids=str, indirect=True)
def test_prompts_without_a_reward_get_replies(experiment):
    """`predict` writes a line for each of 40 prompts, except those whose replies are all empty. No judge is asked."""
    settings = yaml.safe_load(text_of(experiment))
    few = ["--data.max_new", "8", "--trainer.callbacks", "null"]
    main(["predict", *words_of(CONF, experiment), *few, *QUIET, "--run_dir", "run"])
    lines = read("run/predictions/replies.jsonl")
    assert 36 < len(lines) <= 40 and all(line.score is None for line in lines)
    assert max(len(line.responses) for line in lines) == settings["data"]["init_args"].get("replies", 4)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["reviews/ppo_lora"], indirect=True)
def test_the_reference_of_a_policy_with_lora_stays_the_folder_s_model_while_the_policy_moves(experiment):
    pytest.importorskip("peft")
    model = main(["fit", *brief(experiment), *QUIET, "--run_dir", "run"]).model.eval()
    base = HuggingFacePolicy("outputs/reviews/sft-seed0/huggingface").eval()
    ids = torch.randint(base.vocabulary, (4, 20))
    with torch.no_grad():
        was, reference, now = (policy(ids).log_prob(ids) for policy in (base, model.reference, model.policy))
    torch.testing.assert_close(reference, was, atol=1e-4, rtol=0)
    assert (now - was).abs().max() > 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run of conf/injection.yaml, with its logger."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    main([*INJECTION, "--config", str(DEBUG), "--run_dir", str(folder)])
    return folder


def test_everything_of_a_run_lies_in_its_folder(run):
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "journal.jsonl"):
        assert (run / name).is_file(), name
    assert (run / "raw" / "injection.yaml").read_text() == (CONF / "injection.yaml").read_text()
    assert (run / "raw" / "debug.yaml").read_text() == DEBUG.read_text()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2 and config["data"]["init_args"]["seed"] == 0
    kinds = {json.loads(line)["kind"] for line in (run / "journal.jsonl").read_text().splitlines()}
    assert "metrics" in kinds


def test_the_checkpoint_holds_no_code_and_all_it_needs(run):
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["_class_path"] == "lightning_nlf.objectives.InjectionPolicy"
    for base in (ObjectiveModule, InjectionPolicy):
        module = base.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True, gamma=0.5)
        assert type(module) is InjectionPolicy and module.gamma == 0.5
        assert module.imitation_weight.over == checkpoint["hyper_parameters"]["imitation_weight"]["init_args"]["over"]
        assert torch.equal(module.policy.log_std, checkpoint["state_dict"]["policy.log_std"])


def test_a_network_that_started_from_another_run_is_rebuilt_without_it(run):
    source = run.parent / "source.ckpt"
    source.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    flags = ["--model.policy.weights", str(source), "--trainer.max_epochs", "1"]
    main([*INJECTION, *flags, *QUIET, "--run_dir", "started"])
    source.unlink()
    reloaded = ObjectiveModule.load_from_checkpoint("started/checkpoints/last.ckpt")
    state = torch.load("started/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(reloaded.policy.log_std, state["policy.log_std"])


def test_a_module_built_by_hand_says_how_to_load_it(run):
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    del checkpoint["hyper_parameters"]
    torch.save(checkpoint, "by_hand.ckpt")
    with pytest.raises(ValueError, match="does not contain the arguments of its module.*load_state_dict"):
        ObjectiveModule.load_from_checkpoint("by_hand.ckpt")


def test_fit_goes_on_from_last_and_keeps_both_configs(run):
    folder = Path(shutil.copytree(run, "outputs/injection+debug-seed0"))
    args = [*INJECTION, "--config", str(DEBUG), *QUIET]
    cli = main([*args, "--trainer.max_epochs", "3", "--ckpt_path", "last"])
    assert cli.run_dir == folder and cli.datamodule.counters["iteration"] == cli.trainer.current_epoch == 3
    assert (folder / "config.yaml").read_text() == (run / "config.yaml").read_text()
    assert yaml.safe_load((folder / "config-resumed-1.yaml").read_text())["trainer"]["max_epochs"] == 3
    assert main(args, run=False).run_dir.name == "injection+debug-seed0-2"  # a fresh one


def test_fit_from_last_begins_where_there_is_none():
    cli = main([*INJECTION, "--ckpt_path", "last"], run=False)
    assert (cli.run_dir, cli.options.ckpt_path) == (Path("outputs/injection-seed0"), None)


def test_a_fit_resumed_at_its_end_says_so(run, capsys):
    shutil.copytree(run, "outputs/injection+debug-seed0")
    main([*INJECTION, "--config", str(DEBUG), *QUIET, "--ckpt_path", "last"])
    message = capsys.readouterr().err
    assert "nothing to do: the run has finished 2 of 2 iterations" in message and "raise trainer.max_epochs" in message


def test_fast_dev_run_leaves_no_folder():
    main([*INJECTION, "--trainer.fast_dev_run", "true"])
    assert not Path("outputs").exists()


def test_an_evaluation_without_a_checkpoint_says_so(capsys):
    main(["validate", *INJECTION[1:], *QUIET])
    assert "no --ckpt_path: evaluating the untrained initial weights" in capsys.readouterr().err


@pytest.mark.parametrize("stage, name", [("validate", "val/return"), ("test", "test/return")])
def test_stages_take_a_checkpoint_by_name(run, stage, name):
    before = (run / "config.yaml").read_text()
    args = [stage, "--config", str(run / "config.yaml"), "--ckpt_path", "best", *QUIET]
    cli = main(args)  # the resolved config names its run folder
    assert cli.trainer.callback_metrics[name] > 0
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(cli.model.policy.log_std.cpu(), best["policy.log_std"])
    assert (run / "config.yaml").read_text() == before and not (run / "config-resumed-1.yaml").exists()


def test_networks_of_another_size_are_a_mistake(run, capsys):
    with pytest.raises(SystemExit) as ending:
        args = ["--ckpt_path", "best", "--run_dir", str(run), "--model.policy.hidden", "[8]", *QUIET]
        main(["test", *INJECTION[1:], *args])
    assert ending.value.code == 2
    assert "the checkpoint is of other networks" in capsys.readouterr().err


# ---- in a process of its own


def test_help_comes_without_lightning():
    check = "import sys; sys.argv[1:] = ['--help']; import lightning_nlf.__main__ as m; m.main(); "
    check += "assert not {'lightning', 'torch'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for word in ("fit", "validate", "test", "predict", "--config", "--ckpt_path last"):
        assert word in result.stdout


@pytest.mark.slow
def test_a_mistake_is_one_line_of_a_process():
    result = command("fit", "--config", str(CONF / "injection.yaml"), "--model.gama", "1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --model.gama: InjectionPolicy has no such key. Did you mean 'gamma'?\n"


@pytest.mark.slow
def test_sigterm_ends_a_fit_with_its_code():
    args = [*INJECTION, "--trainer.max_epochs", "100000", "--trainer.log_every_n_steps", "1", "--run_dir", "run"]
    process = subprocess.Popen([sys.executable, "-m", "lightning_nlf", *args], stderr=subprocess.PIPE, text=True)
    # The first line of metrics: from then on Lightning has its handler.
    deadline, journal = time.monotonic() + 60, Path("run/journal.jsonl")
    try:
        while not (journal.is_file() and '"metrics"' in journal.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and "Traceback" not in errors


@pytest.mark.slow
def test_a_run_is_quiet_but_for_its_progress():
    result = command(*INJECTION, "--trainer.max_epochs", "1", "--trainer.logger", "false", "--run_dir", "run")
    assert result.returncode == 0 and result.stderr == ""
    assert Path("run/checkpoints/last.ckpt").is_file()


@pytest.mark.slow
def test_another_process_loads_the_checkpoint_alone(run):
    code = (
        "import sys, torch; from lightning_nlf.modules import ObjectiveModule as M; "
        "m = M.load_from_checkpoint(sys.argv[1]); print(type(m).__name__, m.policy(torch.ones(1, 1, 4)).mean.item())"
    )
    path = str(run / "checkpoints" / "best.ckpt")
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    local = ObjectiveModule.load_from_checkpoint(path).policy(torch.ones(1, 1, 4)).mean.item()
    assert result.stdout.split() == ["InjectionPolicy", str(local)], result.stderr
    assert result.stderr == ""
