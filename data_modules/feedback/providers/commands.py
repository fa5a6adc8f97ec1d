"""Commands that run feedback providers: `judge` and `constitution`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_modules.feedback.providers.provider import Provider, without
from data_modules.judgements.files import first_ten, write
from data_modules.judgements.schema import Judgement
from data_modules.terminal import on_one_line
from lightning_nlf.moved_yamls import new_place

INTERRUPTED = 130  # exit code after Ctrl-C, by the convention of shells
Read = Callable[[argparse.Namespace], list[Judgement]]


def add_commands(commands: Any, parent: argparse.ArgumentParser, read: Read) -> None:
    """Add both commands to a parser.

    Args: parent: parser with the arguments for the feedback file; read: function that reads the file.
    """
    judge = commands.add_parser("judge", parents=[parent], help="have a model, a rule or an environment judge replies")
    judge.add_argument(
        "--config", type=Path, required=True, metavar="YAML", help="the provider, as class_path and init_args"
    )
    judge.add_argument("--replace", action="store_true", help="replace feedback that the file has already")
    judge.set_defaults(command=lambda options: _complete(options, read, _configured(options)))

    revise = commands.add_parser(
        "constitution", parents=[parent], help="criticise and revise replies according to principles"
    )
    revise.add_argument(
        "--principles", type=Path, required=True, metavar="YAML", help="the principles and the model's endpoint"
    )
    revise.add_argument("--rounds", type=int, default=1, metavar="N", help="revisions per reply (default: 1)")
    revise.add_argument("--seed", type=int, default=0, help="seed for drawing the principles (default: 0)")
    revise.add_argument("--replace", action="store_true", help="replace expected responses that the file has already")
    revise.set_defaults(command=lambda options: _complete(options, read, _constitution(options)))

    for command in (judge, revise):
        command.add_argument("--out", type=Path, required=True, help="output file; written completely or not at all")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="override a value of the yaml: endpoint.model=…",
        )


def _complete(options: argparse.Namespace, read: Read, provider: Provider) -> int:
    """Run the provider, write the result, and return the exit code: 130 after Ctrl-C, else 0."""
    judgements = read(options)
    if options.replace:
        judgements = [without(judgement, provider.gives) for judgement in judgements]
    with _progress(len(judgements)) as tick:
        completed, account = provider.complete(judgements, tick)
    fuller = sum(new != old for new, old in zip(completed, judgements, strict=True))
    if not fuller and account.interrupted:
        raise KeyboardInterrupt
    left_out = first_ten(f"{len(account.left_out)} left out:", account.left_out)
    if not fuller and (account.stopped or account.left_out):
        raise ValueError(account.stopped or left_out)
    write(options.out, completed)
    cost = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in account.counters.items())
    print(f"{options.out}: feedback added to {fuller} of {len(completed)} prompts ({cost})")
    if account.left_out:
        print(left_out, file=sys.stderr)
    if reason := "by Ctrl-C" if account.interrupted else account.stopped:
        print(f"stopped: {on_one_line(reason)}; run the same command again to continue", file=sys.stderr)
    return INTERRUPTED if account.interrupted else 0


# ---- from yaml to provider


def _configured(options: argparse.Namespace) -> Provider:
    return _built(_yaml(options.config, "--config"), options.set, options.config)


def _constitution(options: argparse.Namespace) -> Provider:
    init_args = {
        name: value for name, value in _yaml(options.principles, "--principles").items() if name != "principles"
    }
    init_args |= {"principles": str(options.principles), "rounds": options.rounds, "seed": options.seed}
    config = {"class_path": "data_modules.feedback.providers.Constitution", "init_args": init_args}
    return _built(config, options.set, options.principles)


def _yaml(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        new = new_place(str(path))
        raise ValueError(f"{name}: the file {path} does not exist" + (f"; it is now {new}" if new else ""))
    config = _parsed(path.read_bytes(), f"{name}: {path}")
    if not isinstance(config, dict):
        raise ValueError(f"{name}: {path} must be a mapping")
    return config


def _parsed(text: str | bytes, name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid yaml: {' '.join(str(error).split())}") from None
    except (RecursionError, UnicodeDecodeError):
        raise ValueError(f"{name} is not valid yaml: it is nested too deeply, or not UTF-8") from None


def _set(config: dict[str, Any], changes: list[str]) -> None:
    """Apply changes of the form `a.b=value` to the `init_args` of a config."""
    for change in changes:
        name, sign, value = change.partition("=")
        if not sign or not name:
            raise ValueError(f"--set: got {change!r}, must be like endpoint.model=judge")
        *path, last = ["init_args", *name.split(".")]
        node = config
        for key in path:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"--set: {name}: {key} is not a mapping")
        node[last] = _parsed(value, f"--set: {name}: {value!r}")


def _built(config: dict[str, Any], changes: list[str], path: Path) -> Provider:
    from jsonargparse import ArgumentError, ArgumentParser

    _set(config, changes)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--provider", type=Provider, required=True)
    try:
        return parser.instantiate_classes(parser.parse_object({"provider": config})).provider
    except ArgumentError as error:
        raise ValueError(f"{path}: {_in_one_line(str(error))}") from None


def _in_one_line(message: str) -> str:
    """Write an error of jsonargparse on one line: the path of keys to the wrong value, and the reason."""
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))
    keys = re.findall(r'Parser key "([^"]+)":', text)
    _, _, reason = text.rpartition(f'Parser key "{keys[-1]}":') if keys else ("", "", text)
    return f"{'.'.join(keys[1:])}: {reason.strip()}" if keys[1:] else text


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """Progress bar on standard error, if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("judged", total=total)
        yield lambda: progress.advance(task)
