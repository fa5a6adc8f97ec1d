"""`ask` and `pull` of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from data_modules.feedback.compare import wins
from data_modules.feedback.people import store
from data_modules.feedback.people.ask import ask
from data_modules.feedback.people.pull import pull
from data_modules.terminal import printable


def add_commands(commands: Any) -> None:
    """Args: commands: the subparsers of an `argparse` parser."""
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--queue", required=True, metavar="NAME", help="of the review queue")
    place.add_argument(
        "--tracking-uri",
        "--tracking_uri",
        metavar="URI",
        help=f"the MLflow store (default: MLFLOW_TRACKING_URI, or {store.DEFAULT_URI})",
    )
    place.add_argument("--experiment", default=store.DEFAULT_EXPERIMENT, metavar="NAME", help="(default: %(default)s)")

    command = commands.add_parser("ask", parents=[place], help="put a file in front of people, in MLflow")
    command.add_argument("file", type=Path, metavar="FILE", help="JSON lines, such as the replies that predict wrote")
    command.add_argument(
        "--scale", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help="of scores (default: 0 1)"
    )
    command.add_argument(
        "--reviewers", nargs="+", default=(), metavar="USER", help="who may review (default: whoever sees the queue)"
    )
    command.add_argument(
        "--blind",
        action="store_true",
        help="show several answers in an order that says nothing of whose they are, and that pull undoes; "
        "changed.jsonl of a run is always asked so",
    )
    command.set_defaults(command=_ask)

    command = commands.add_parser("pull", parents=[place], help="read back what people said")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="to write, whole or not at all")
    command.set_defaults(command=_pull)


def _ask(options: argparse.Namespace) -> None:
    scale, reviewers = tuple(options.scale), tuple(options.reviewers)
    put = ask(options.file, options.queue, options.tracking_uri, scale, reviewers, options.experiment, options.blind)
    print(printable(put))


def _pull(options: argparse.Namespace) -> None:
    found = pull(options.queue, options.out, options.tracking_uri, options.experiment)
    if found.faults:
        print(printable(found.reopened), file=sys.stderr)
    if not found.judgements:
        raise ValueError(f"queue: {options.queue!r} has no review that can be used; items that wait: {found.waiting}")
    print(printable(f"{options.out}: {found}"))
    for line in wins(found.judgements):
        print(printable(line))
