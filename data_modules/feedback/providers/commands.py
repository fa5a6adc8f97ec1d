"""The command lines that ask providers: `judge` and `constitution`."""

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

INTERRUPTED = 130  # exit code of what Ctrl-C ended, as shells have it
Read = Callable[[argparse.Namespace], list[Judgement]]


def add_commands(commands: Any, parent: argparse.ArgumentParser, read: Read) -> None:
    """Adds both to the parser's commands.

    Args: parent: has the arguments of a file; read: reads it.
    """
    judge = commands.add_parser("judge", parents=[parent], help="have a model, a rule or an environment judge replies")
    judge.add_argument(
        "--config", type=Path, required=True, metavar="YAML", help="the provider, by class_path and init_args"
    )
    judge.add_argument("--replace", action="store_true", help="ask anew for what the file says already")
    judge.set_defaults(command=lambda options: _complete(options, read, _configured(options)))

    revise = commands.add_parser("constitution", parents=[parent], help="criticise and revise replies by principles")
    revise.add_argument(
        "--principles", type=Path, required=True, metavar="YAML", help="the principles, and the endpoint of the model"
    )
    revise.add_argument("--rounds", type=int, default=1, metavar="N", help="revisions of a reply (default: 1)")
    revise.add_argument("--seed", type=int, default=0, help="of the principles that are drawn (default: 0)")
    revise.add_argument("--replace", action="store_true", help="revise where there is an expected response already")
    revise.set_defaults(command=lambda options: _complete(options, read, _constitution(options)))

    for command in (judge, revise):
        command.add_argument("--out", type=Path, required=True, help="the file to write, whole or not at all")
        command.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", help="in place of the yaml's: endpoint.model=…"
        )


def _complete(options: argparse.Namespace, read: Read, provider: Provider) -> int:
    """Writes what was judged, and returns the exit code: 130 after Ctrl-C."""
    judgements = read(options)
    if options.replace:
        judgements = [without(judgement, provider.gives) for judgement in judgements]
    with _progress(len(judgements)) as tick:
        done, account = provider.complete(judgements, tick)
    fuller = sum(new != old for new, old in zip(done, judgements, strict=True))
    if not fuller and account.interrupted:
        raise KeyboardInterrupt
    left_out = first_ten(f"{len(account.left_out)} left out:", account.left_out)
    if not fuller and (account.stopped or account.left_out):
        raise ValueError(account.stopped or left_out)
    write(options.out, done)
    cost = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in account.counters.items())
    print(f"{options.out}: more is known of {fuller} of {len(done)} prompts ({cost})")
    if account.left_out:
        print(left_out, file=sys.stderr)
    if stopped := "by Ctrl-C" if account.interrupted else account.stopped:
        print(f"stopped: {on_one_line(stopped)}; the same command goes on from where it was", file=sys.stderr)
    return INTERRUPTED if account.interrupted else 0


# ---- from yaml to provider


def _configured(options: argparse.Namespace) -> Provider:
    return _built(_yaml(options.config, "--config"), options.set, options.config)


def _constitution(options: argparse.Namespace) -> Provider:
    given = {name: value for name, value in _yaml(options.principles, "--principles").items() if name != "principles"}
    given |= {"principles": str(options.principles), "rounds": options.rounds, "seed": options.seed}
    config = {"class_path": "data_modules.feedback.providers.Constitution", "init_args": given}
    return _built(config, options.set, options.principles)


def _yaml(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{name}: there is no file {path}")
    config = _parsed(path.read_bytes(), f"{name}: {path}")
    if not isinstance(config, dict):
        raise ValueError(f"{name}: {path} must be a mapping")
    return config


def _parsed(text: str | bytes, name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no yaml: {' '.join(str(error).split())}") from None
    except (RecursionError, UnicodeDecodeError):
        raise ValueError(f"{name} is no yaml: it nests too deeply, or is no UTF-8") from None


def _set(config: dict[str, Any], changes: list[str]) -> None:
    """Sets each `a.b=value` among the `init_args` of a config."""
    for change in changes:
        name, sign, value = change.partition("=")
        if not sign or not name:
            raise ValueError(f"--set: got {change!r}, must be like endpoint.model=judge")
        *path, last = ["init_args", *name.split(".")]
        node = config
        for key in path:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"--set: {name} goes through {key}, which is no mapping")
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
    """Of jsonargparse: the keys down to the wrong one, and what is wrong with it."""
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))
    keys = re.findall(r'Parser key "([^"]+)":', text)
    _, _, reason = text.rpartition(f'Parser key "{keys[-1]}":') if keys else ("", "", text)
    return f"{'.'.join(keys[1:])}: {reason.strip()}" if keys[1:] else text


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("judged", total=total)
        yield lambda: progress.advance(task)
