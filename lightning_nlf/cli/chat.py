"""`python -m lightning_nlf chat --run_dir RUN`: chat with a trained language policy in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml

from lightning_nlf.cli.endings import user_errors
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
    """Argument parser of `chat`, which raises ConfigurationError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(message)


def main(words: Sequence[str]) -> None:
    """Chat with the policy of a run until the input ends.

    Raises:
        ConfigurationError: The run or its checkpoint is missing, the run is not a run on text, or a flag is wrong.
    """
    options = _options().parse_args(words)
    folder = Path(options.run_dir)
    config = _config(folder)
    trust = [*(config.get("trust") or []), *options.trust]
    with user_errors((), folder), trusting(trust):
        file = _checkpoint(folder, options.ckpt_path)
        beside = {"model": ObjectiveModule} if options.beside else {}
        L.seed_everything(config.get("seed_everything", 0), workers=True, verbose=False)
        with recorded_as({}):  # records are only for checkpoints, and a chat saves none
            built = build(config, {**beside, "data": L.LightningDataModule})
        data = built["data"]
        if not isinstance(data, Speaking):
            raise ConfigurationError(f"run_dir: {folder} is not a language run; its data is {type(data).__name__}")
        speech = data.speech(options.system)
        model = ObjectiveModule.load_from_checkpoint(file, trust=trust)
        speakers = {"policy": model, **({"start": built["model"]} if options.beside else {})}
        policies = {name: _ready(module, data) for name, module in speakers.items()}
    print(f"{file}; {HELP}", file=sys.stderr)
    if not speech.turns:
        print("this run has no chat template: the policy reads each line as a separate prompt", file=sys.stderr)
    talk(Talk(speech, policies, options.max_new, options.temperature, options.seed))


def _ready(module: Any, data: object) -> PolicyModule:
    if not isinstance(module, PolicyModule):
        raise ConfigurationError(f"run_dir: this run trained a {type(module).__name__}, which does not write replies")
    source, policy = PartialSource(data), module.policy
    policy.check_tokenizer(source.tokenizer_digest, source.vocabulary)
    return module.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _config(folder: Path) -> dict[str, Any]:
    """Read the configuration that was last saved in the run folder."""
    if not folder.is_dir():
        raise ConfigurationError(f"run_dir: the folder {folder} does not exist")
    files = configurations(folder)
    if not files:
        raise ConfigurationError(f"run_dir: {folder} has no config.yaml; give the folder of a finished fit")
    try:
        config = yaml.safe_load(files[-1].read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"run_dir: {files[-1]} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict) or not {"model", "data"} <= config.keys():
        raise ConfigurationError(f"run_dir: {files[-1]} is damaged: the key model or data is missing")
    return config


def _checkpoint(folder: Path, name: str | None) -> str:
    """Path of the checkpoint to load. By default best.ckpt, or last.ckpt if no best.ckpt was saved."""
    if name is None:
        saved_names = [stem for stem in NAMES if (folder / "checkpoints" / f"{stem}.ckpt").is_file()]
        name = saved_names[0] if saved_names else NAMES[-1]
    return checkpoint_file(folder, "chat", name) or ""


def _options() -> Options:
    parser = Options(
        prog="python -m lightning_nlf chat",
        description=f"Chat with the policy of a run. Commands: {HELP}. Standard input can also be a pipe.",
        allow_abbrev=False,
    )
    parser.add_argument("--run_dir", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--ckpt_path", metavar="best|last|FILE", help="(default: best, or last if there is no best)")
    parser.add_argument("--beside", choices=("start",), help="also show the replies of the policy before training")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.0, help="sampling temperature; 0 is greedy (default: 0)"
    )
    parser.add_argument(
        "--max_new", type=_size, default=256, metavar="TOKENS", help="maximum length of a reply (default: 256)"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message (default: the one that the run used)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument(
        "--trust", nargs="+", default=[], metavar="PACKAGE", help="your packages whose classes the checkpoint may load"
    )
    return parser


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"got {text}, must be a number of at least 0")
    return value


def _size(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, must be a whole number of at least 1")
    return int(text)
