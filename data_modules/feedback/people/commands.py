"""Commands `ask` and `pull`: submit a feedback file to people, and read back their reviews."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from data_modules.feedback.compare import wins
from data_modules.feedback.options import add_scale
from data_modules.feedback.people import store
from data_modules.feedback.people.ask import ask
from data_modules.feedback.people.pull import pull
from data_modules.terminal import printable


def add_commands(commands: Any) -> None:
    """Add both commands to a parser.  commands: the subparsers of an `argparse` parser."""
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--queue", required=True, metavar="NAME", help="name of the review queue")
    place.add_argument(
        "--tracking-uri",
        "--tracking_uri",
        metavar="URI",
        help=f"the MLflow store (default: MLFLOW_TRACKING_URI, or {store.DEFAULT_URI})",
    )
    place.add_argument(
        "--experiment",
        default=store.DEFAULT_EXPERIMENT,
        metavar="NAME",
        help="MLflow experiment (default: %(default)s)",
    )

    command = commands.add_parser("ask", parents=[place], help="submit a file to people for review, in MLflow")
    command.add_argument("file", type=Path, metavar="FILE", help="JSON lines, such as the replies that `predict` wrote")
    add_scale(command)
    command.add_argument(
        "--reviewers",
        nargs="+",
        default=(),
        metavar="USER",
        help="who may review (default: everybody who can see the queue)",
    )
    command.add_argument(
        "--blind",
        action="store_true",
        help="show several answers in an order that hides which policy wrote them; `pull` restores the order "
        "(always on for the changed.jsonl of a run)",
    )
    command.set_defaults(command=_ask)

    command = commands.add_parser("pull", parents=[place], help="read back people's reviews")
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="output file; written completely or not at all"
    )
    command.set_defaults(command=_pull)


def _ask(options: argparse.Namespace) -> None:
    scale, reviewers = tuple(options.scale), tuple(options.reviewers)
    submission = ask(
        options.file, options.queue, options.tracking_uri, scale, reviewers, options.experiment, options.blind
    )
    print(printable(submission))


def _pull(options: argparse.Namespace) -> None:
    reviews = pull(options.queue, options.out, options.tracking_uri, options.experiment)
    if reviews.faults:
        print(printable(reviews.reopened), file=sys.stderr)
    if not reviews.judgements:
        raise ValueError(f"queue: {options.queue!r} has no usable review; {reviews.waiting} items wait for one")
    print(printable(f"{options.out}: {reviews}"))
    for line in wins(reviews.judgements):
        print(printable(line))
