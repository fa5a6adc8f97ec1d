"""`python -m lightning_nlf chat --run_dir RUN`: talk with the policy of a run in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml

from lightning_nlf.cli.endings import told_in_one_sentence
from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.cli.parser import build
from lightning_nlf.cli.run_folder import NAMES, checkpoint_file
from lightning_nlf.cli.saved_config import configurations
from lightning_nlf.cli.talk import HELP, Speaking, Talk, talk
from lightning_nlf.data_source import PartialSource
from lightning_nlf.modules import ObjectiveModule, PolicyModule
from lightning_nlf.private_names import recorded_as
from lightning_nlf.trust import trusting


class Options(argparse.ArgumentParser):
    """Raises ConfigurationError with one sentence, instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(message)


def main(words: Sequence[str]) -> None:
    """Talk until the input ends.

    Raises:
        ConfigurationError: no run, no checkpoint, a run without language, or a flag that it cannot have.
    """
    options = _options().parse_args(words)
    folder = Path(options.run_dir)
    config = _config(folder)
    trust = [*(config.get("trust") or []), *options.trust]
    with told_in_one_sentence((), folder), trusting(trust):
        file = _checkpoint(folder, options.ckpt_path)
        beside = {"model": ObjectiveModule} if options.beside else {}
        L.seed_everything(config.get("seed_everything", 0), workers=True, verbose=False)  # as the run began
        with recorded_as({}):  # it is never saved
            built = build(config, {**beside, "data": L.LightningDataModule})
        data = built["data"]
        if not isinstance(data, Speaking):
            raise ConfigurationError(f"run_dir: {folder} is not a language run: its data is {type(data).__name__}")
        speech = data.speech(options.system)
        model = ObjectiveModule.load_from_checkpoint(file, trust=trust)
        speakers = {"policy": model, **({"start": built["model"]} if options.beside else {})}
        policies = {name: _ready(module, data) for name, module in speakers.items()}
    print(f"{file}; {HELP}", file=sys.stderr)
    if not speech.turns:
        print("there is no chat template: each line is a prompt of its own", file=sys.stderr)
    talk(Talk(speech, policies, options.max_new, options.temperature, options.seed))


def _ready(module: Any, data: object) -> PolicyModule:
    if not isinstance(module, PolicyModule):
        raise ConfigurationError(f"run_dir: it is a run of {type(module).__name__}, which judges and does not reply")
    source, policy = PartialSource(data), module.policy
    policy.check_tokenizer(source.tokenizer_digest, source.vocabulary)
    return module.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _config(folder: Path) -> dict[str, Any]:
    """The configuration that the run went on with last."""
    if not folder.is_dir():
        raise ConfigurationError(f"run_dir: there is no folder {folder}")
    files = configurations(folder)
    if not files:
        raise ConfigurationError(f"run_dir: there is no config.yaml in {folder}; name the folder of a fit")
    try:
        config = yaml.safe_load(files[-1].read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"run_dir: {files[-1]} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict) or not {"model", "data"} <= config.keys():
        raise ConfigurationError(f"run_dir: {files[-1]} is damaged: it has no model and data")
    return config


def _checkpoint(folder: Path, name: str | None) -> str:
    """By default the best, or the last where no best one was kept."""
    if name is None:
        name = next((each for each in NAMES if (folder / "checkpoints" / f"{each}.ckpt").is_file()), NAMES[-1])
    return checkpoint_file(folder, "chat", name) or ""


def _options() -> Options:
    parser = Options(
        prog="python -m lightning_nlf chat",
        description=f"Talk with the policy of a run. In the chat: {HELP}. Lines of a pipe are answered as well.",
        allow_abbrev=False,
    )
    parser.add_argument("--run_dir", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--ckpt_path", metavar="best|last|FILE", help="(default: best, or last if there is no best)")
    parser.add_argument("--beside", choices=("start",), help="talk with the untrained policy too, in a chat of its own")
    parser.add_argument("--temperature", type=_temperature, default=0.0, help="0 is greedy (default), 1 as trained")
    parser.add_argument("--max_new", type=_size, default=256, metavar="TOKENS", help="of a reply (default: 256)")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: that of the run)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--trust", nargs="+", default=[], metavar="PACKAGE", help="yours, that the checkpoint may name")
    return parser


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"got {text}, must be at least 0")
    return value


def _size(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, must be at least 1")
    return int(text)
