"""The `chat` command: a real process with a pipe on a tiny run, the chat loop alone, and one-line errors."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from data_modules.judgements.schema import Message  # noqa: E402
from data_modules.text import FolderTokenizer  # noqa: E402
from data_modules.text.prompts import PromptFormat  # noqa: E402
from lightning_nlf.cli import talk  # noqa: E402
from lightning_nlf.cli.command_line import main  # noqa: E402
from lightning_nlf.modules import ObjectiveModule  # noqa: E402
from lightning_nlf.networks import GRUReward  # noqa: E402
from lightning_nlf.objectives import BradleyTerryReward  # noqa: E402
from tests.data_modules.text.chats import SHAPES, folder  # noqa: E402

ROOT = Path(__file__).parents[3]
LINES = [{"prompt": "what is it", "expected": "the answer"}, {"prompt": "and so on", "expected": "new line"}]
CONTEXT = 128


def spec(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the run of a chat model that was trained until it repeats its two replies."""
    root = tmp_path_factory.mktemp("chat")
    tokenizer = folder(root / "model", SHAPES["chatml"], "bytes")
    (root / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    shape = {"vocabulary": 512, "layers": 1, "heads": 2, "width": 16, "context": CONTEXT}
    policy = spec("lightning_nlf.networks.TransformerPolicy", shape=shape)
    adam = spec("torch.optim.Adam", lr=0.02)
    data = spec(
        "data_modules.text.DemonstrationsDataModule",
        path=str(root / "lines.jsonl"),
        tokenizer=spec("data_modules.text.FolderTokenizer", path=tokenizer),
    )
    config = {
        "seed_everything": 3,
        "trainer": {
            "max_epochs": 30,
            "gradient_clip_val": None,
            "logger": False,
            "enable_progress_bar": False,
            "accelerator": "cpu",
        },
        "model": spec("lightning_nlf.objectives.ImitationPolicy", policy=policy, divergence="nll", optimizer=adam),
        "data": data,
    }
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(root / "run.yaml"), "--run_dir", str(root / "run")])
    return root


def started(place, *flags):
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_nlf", "chat", "--run_dir", "run", *flags],
        cwd=place, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def reply_of(module, tokenizer, *messages):
    ids = PromptFormat(tokenizer).ids(tuple(Message(*message) for message in messages))
    tokens, _, counts, _ = module.reply(
        torch.tensor([ids]), torch.tensor([len(ids)]), stop=(tokenizer.eos,), max_new=9, deterministic=True
    )
    return tokenizer.decode(tokens[0, : int(counts[0])].tolist())


def test_a_pipe_is_answered_by_the_policy_and_its_start(place):
    """A second turn sees the first, but not after /reset. Each policy sees its own replies. /quit ends the reading."""
    process = started(place, "--beside", "start", "--max_new", "9")
    out, err = process.communicate("what is it\nand so on\n/reset\nand so on\n\n/quit\nwhat is it\n", timeout=120)
    assert process.returncode == 0, err
    tokenizer = FolderTokenizer(str(place / "model"))
    trained = ObjectiveModule.load_from_checkpoint(place / "run/checkpoints/last.ckpt")
    start = main(["fit", "--config", str(place / "run.yaml"), "--run_dir", str(place / "again")], run=False).model
    chats, expected = {"policy": [], "start": []}, []
    for text, forget in (("what is it", False), ("and so on", False), ("and so on", True)):
        for (name, chat), module in zip(chats.items(), (trained, start), strict=True):
            chats[name] = [*([] if forget else chat), ("user", text)]
            reply = reply_of(module, tokenizer, *chats[name])
            chats[name].append(("assistant", reply))
            expected.append(f"{name}> {reply.strip()}")
    assert expected[0] == "policy> the answer" and expected[4] == "policy> new line"
    assert out.splitlines() == [line for text in expected for line in talk.printable(text).split("\n")]
    assert "last.ckpt; /reset starts a new chat" in err and "Traceback" not in err and "hyper" not in err


@pytest.mark.slow
def test_ctrl_c_ends_it_without_a_traceback(place):
    process = started(place)
    process.stdin.write("what is it\n")
    process.stdin.flush()
    assert process.stdout.readline() == "policy> the answer\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err


def typed(text, place, *flags, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    main(["chat", "--run_dir", str(place / "run"), *flags])


def test_a_system_message_a_temperature_and_a_seed_change_what_is_said(place, monkeypatch, capsys):
    def replies(*flags):
        typed("and so on\nand so on\n", place, "--max_new", "9", *flags, monkeypatch=monkeypatch)
        return capsys.readouterr().out

    greedy = replies()
    assert greedy == replies() != replies("--system", "the answer is 2 < 3")
    hot = ("--temperature", "9")
    assert replies(*hot) == replies(*hot) != greedy and replies(*hot, "--seed", "1") != replies(*hot)


def test_a_chat_that_is_too_long_says_so_and_goes_on(place, monkeypatch, capsys):
    typed(f"{'so ' * 200}\nwhat is it\n", place, monkeypatch=monkeypatch)
    out, err = capsys.readouterr()
    assert f"but the policy reads at most {CONTEXT}: write less" in err and out == "policy> the answer\n"


# ---- the loop


class Words:
    """A converter whose ids are the lengths of the messages. Replies are decoded by `chr`."""

    stops, turns = (0,), True

    def __init__(self):
        self.read = []

    def ids(self, messages):
        if "bad" in messages[-1][1]:
            raise ValueError("the tokenizer has no 'bad'")
        self.read.append(list(messages))
        return [len(text) for _, text in messages]

    def text(self, ids):
        return "".join(map(chr, ids[:-1]))


class Fixed:
    """A policy that always replies with one text."""

    def __init__(self, text, context=None):
        self.ids, self.policy = [*map(ord, text), 0], type("", (), {"context": context})

    def reply(self, ids, lengths, **how):
        self.how = how
        return torch.tensor([self.ids]), None, torch.tensor([len(self.ids)]), None


def test_what_a_policy_says_cannot_rewrite_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    talk.talk(talk.Talk(Words(), {"policy": Fixed("\x1b[2Jgone\rover")}, max_new=5))
    assert capsys.readouterr().out == "policy> \\x1b[2Jgone\nover\n"


def test_each_reads_what_it_said_itself_and_a_wrong_message_is_forgotten(monkeypatch, capsys):
    words = Words()
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\nbad\n/nope\ntwo"))
    talk.talk(talk.Talk(words, {"policy": Fixed("P"), "start": Fixed("S")}, max_new=5))
    begun = [("user", "one")]
    second = [[*begun, ("assistant", reply), ("user", "two")] for reply in "PS"]
    assert words.read == [begun, begun, *second]
    out, err = capsys.readouterr()
    assert out == "policy> P\nstart> S\n" * 2
    assert "error: the tokenizer has no 'bad'" in err and "unknown command /nope: /reset" in err


def test_the_room_of_the_context_is_used_and_not_more():
    fixed = Fixed("a", context=10)
    chat = talk.Talk(Words(), {"policy": fixed}, max_new=20)
    chat.replies("x")
    assert fixed.how["max_new"] == 9
    chat.replies("y")
    assert fixed.how["max_new"] == 7  # two messages more
    full = talk.Talk(Words(), {"policy": Fixed("a", context=2)}, max_new=3)
    full.replies("x")
    with pytest.raises(ValueError, match="the chat has 3 tokens, but the policy reads at most 2: type /reset"):
        full.replies("y")
    full.reset()
    assert full.replies("y") == {"policy": "a"}


def test_a_terminal_is_asked_line_by_line_until_ctrl_d(monkeypatch, capsys):
    lines = iter(["hello"])
    monkeypatch.setattr(sys, "stdin", type("", (), {"isatty": lambda: True}))

    def typed_line(prompt):
        assert prompt == "you> "
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed_line)
    talk.talk(talk.Talk(Words(), {"policy": Fixed("P")}, max_new=5))
    assert capsys.readouterr().out == "policy> P\n\n"


# ---- what is refused


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as ending:
        main(["chat", *map(str, flags)])
    (line,) = capsys.readouterr().err.splitlines()
    assert ending.value.code == 2 and line.startswith("error: ")
    return line


def test_no_run_no_checkpoint_and_wrong_flags(place, tmp_path, capsys):
    assert f"run_dir: the folder {tmp_path / 'none'} does not exist" in refused(capsys, "--run_dir", tmp_path / "none")
    assert f"run_dir: {tmp_path} has no config.yaml" in refused(capsys, "--run_dir", tmp_path)
    (tmp_path / "config.yaml").write_text((place / "run" / "config.yaml").read_text())
    assert "checkpoints has no checkpoint" in refused(capsys, "--run_dir", tmp_path)
    run = ("--run_dir", place / "run")
    assert "checkpoints has last.ckpt" in refused(capsys, *run, "--ckpt_path", "best")
    assert "--temperature: got -1, must be a number of at least 0" in refused(capsys, *run, "--temperature", "-1")
    assert "--max_new: got 0, must be a whole number of at least 1" in refused(capsys, *run, "--max_new", "0")
    assert "unrecognized arguments: --hot" in refused(capsys, *run, "--hot")
    (tmp_path / "config.yaml").write_text("a: [")
    assert "is damaged" in refused(capsys, "--run_dir", tmp_path)


def with_config(place, folder, change):
    """A run folder with a changed configuration and an unchanged checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes((place / "run" / "checkpoints" / "last.ckpt").read_bytes())
    config = yaml.safe_load((place / "run" / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_without_language_has_nothing_to_say(place, tmp_path, capsys):
    run = with_config(place, tmp_path / "run", lambda config: config.update(
        data=spec("data_modules.pendulum.PendulumDataModule")))  # fmt: skip
    line = refused(capsys, "--run_dir", run)
    assert line.endswith("is not a language run; its data is PendulumDataModule")


def test_words_of_another_tokenizer_are_refused(place, tmp_path, capsys):
    tokenizer = folder(tmp_path / "other", SHAPES["zephyr"], "bytes")
    run = with_config(
        place,
        tmp_path / "run",
        lambda config: config["data"]["init_args"]["tokenizer"]["init_args"].update(path=tokenizer),
    )
    assert "tokenizer: the policy was trained with a different tokenizer" in refused(capsys, "--run_dir", run)


def test_no_template_no_system_message(place, tmp_path, capsys, monkeypatch):
    def plain(config):
        config["data"]["init_args"]["chat"] = False

    run = with_config(place, tmp_path / "run", plain)
    line = refused(capsys, "--run_dir", run, "--system", "be brief")
    assert "system: the prompts of this run use no chat template; leave system out" in line
    typed("what is it\n", tmp_path, monkeypatch=monkeypatch)
    assert "the policy reads each line as a separate prompt" in capsys.readouterr().err


def test_a_reward_model_does_not_reply(place, capsys, monkeypatch):
    module = BradleyTerryReward(reward=GRUReward(vocabulary=512, width=4))
    monkeypatch.setattr(ObjectiveModule, "load_from_checkpoint", lambda *args, **kwargs: module)
    line = refused(capsys, "--run_dir", place / "run")
    assert "run_dir: this run trained a BradleyTerryReward, which does not write replies" in line


def test_help_is_given(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["chat", "--help"])
    assert ending.value.code == 0 and "--beside" in capsys.readouterr().out
