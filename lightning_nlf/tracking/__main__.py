"""Runs and MLflow from the command line: `python -m lightning_nlf.tracking sync | register | ui`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_nlf.terminal import printable
from lightning_nlf.tracking.journal import JOURNAL, faults
from lightning_nlf.tracking.registry import register
from lightning_nlf.tracking.replay import run_tracking_uri, sync
from lightning_nlf.tracking.server import reason
from lightning_nlf.tracking.uris import DATA_BASE, sqlite_uri, without_credentials


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, or 2 after one line on standard error for each thing that failed."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    """2, after one line; what one line does not say enough of, a fault of this program, is raised again."""
    plain = isinstance(error, (OSError, ValueError, RuntimeError))
    # MLflow's errors share no base with others, and importing MLflow for the clause would cost every command 2 s.
    if not plain and type(error).__module__.split(".")[0] not in ("mlflow", "sqlalchemy", "alembic"):
        raise error
    sentence = str(error) if plain and not hasattr(error, "error_code") else ""
    text = sentence.splitlines()[0] if sentence else reason(error)
    print(printable(f"error: {text}"), file=sys.stderr)
    return 2


def _sync(options: argparse.Namespace) -> int:
    """Send each run, whatever becomes of the others."""
    code = 0
    for run_dir in options.run_dir:
        try:
            position, sent = sync(run_dir, options.tracking_uri)
            uri = without_credentials(run_tracking_uri(run_dir, options.tracking_uri))
            print(f"{run_dir}: {sent} sent, run {position.run_id} at {uri}")
            damaged = list(faults(run_dir / JOURNAL))
            if damaged:
                number, fault = damaged[0]
                lines = "this line is" if len(damaged) == 1 else f"{len(damaged)} such lines are"
                raise ValueError(f"{run_dir / JOURNAL}:{number}: {fault}; {lines} left out, all else is sent")
        except Exception as error:
            code = _fail(error)
    return code


def _register(options: argparse.Namespace) -> None:
    version = register(options.run_dir, options.name, options.alias, options.checkpoint, options.tracking_uri)
    print(f"models:/{options.name}/{version}")
    print(f"models:/{options.name}@{options.alias}")


def _ui(options: argparse.Namespace) -> None:
    store = options.outputs_dir.resolve() / DATA_BASE
    if not store.is_file():
        raise FileNotFoundError(f"{options.outputs_dir} has no mlflow.db: no run was made there without a server")
    command = ["mlflow", "ui", "--backend-store-uri", sqlite_uri(store), "--port", str(options.port)]
    command += ["--workers", "1"]
    print(shlex.join(command))
    # The bare address opens on pages about traces; these open on the runs.
    for name, number in _experiments(store):
        print(f"{name}: http://127.0.0.1:{options.port}/#/experiments/{number}/runs?workflowType=machine_learning")
    sys.stdout.flush()
    if not options.print:
        # The jobs of a shared server are eight more processes that a look at one's own runs has no use for.
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        os.execv(sys.executable, [sys.executable, "-m", *command])


def _experiments(store: Path) -> list[tuple[str, str]]:
    """Name and number of each experiment in the data base, without the seconds that importing MLflow takes."""
    query = "SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'active' AND experiment_id > 0"
    try:
        with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.Error:
        return []  # the table is MLflow's own and may change; the links are a courtesy


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lightning_nlf.tracking", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    uri = argparse.ArgumentParser(add_help=False)
    uri.add_argument("--tracking_uri", "--tracking-uri", help="the MLflow store (default: the one the run was given)")

    command = commands.add_parser("sync", parents=[uri], help="send what has not reached MLflow")
    command.add_argument("run_dir", type=Path, nargs="+", metavar="RUN_DIR")
    command.set_defaults(command=_sync)

    command = commands.add_parser("register", parents=[uri], help="put a checkpoint into the model registry")
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    command.add_argument("--name", required=True)
    command.add_argument("--alias", default="champion")
    command.add_argument("--checkpoint", default="best", help="file in RUN_DIR/checkpoints, without .ckpt")
    command.set_defaults(command=_register)

    command = commands.add_parser("ui", help="show the runs in a browser")
    command.add_argument("outputs_dir", type=Path, nargs="?", default=Path("outputs"), metavar="OUTPUTS_DIR")
    command.add_argument("--port", type=int, default=5000)
    command.add_argument("--print", action="store_true", help="only print the command")
    command.set_defaults(command=_ui)
    return parser


if __name__ == "__main__":
    sys.exit(main())
