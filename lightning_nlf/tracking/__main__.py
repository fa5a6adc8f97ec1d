"""Send, register and view runs in MLflow: `python -m lightning_nlf.tracking sync | register | ui`."""

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
from lightning_nlf.tracking.uris import DATABASE, sqlite_uri, without_credentials


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 after one line on standard error for each failure."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    """Print an expected error as one line and return 2. Raise any other error again, because such an error is a bug."""
    plain = isinstance(error, (OSError, ValueError, RuntimeError))
    # Check MLflow's errors by module name, because importing MLflow would cost every command 2 s.
    if not plain and type(error).__module__.split(".")[0] not in ("mlflow", "sqlalchemy", "alembic"):
        raise error
    sentence = str(error) if plain and not hasattr(error, "error_code") else ""
    text = sentence.splitlines()[0] if sentence else reason(error)
    print(printable(f"error: {text}"), file=sys.stderr)
    return 2


def _sync(options: argparse.Namespace) -> int:
    """Send each run. If one run fails, the other runs are still sent."""
    code = 0
    for run_dir in options.run_dir:
        try:
            position, count = sync(run_dir, options.tracking_uri)
            uri = without_credentials(run_tracking_uri(run_dir, options.tracking_uri))
            print(f"{run_dir}: {count} sent, run {position.run_id} at {uri}")
            damaged = list(faults(run_dir / JOURNAL))
            if damaged:
                number, fault = damaged[0]
                lines = "this line is" if len(damaged) == 1 else f"{len(damaged)} such lines are"
                raise ValueError(f"{run_dir / JOURNAL}:{number}: {fault}; {lines} skipped, the rest was sent")
        except Exception as error:
            code = _fail(error)
    return code


def _register(options: argparse.Namespace) -> None:
    version = register(options.run_dir, options.name, options.alias, options.checkpoint, options.tracking_uri)
    print(f"models:/{options.name}/{version}")
    print(f"models:/{options.name}@{options.alias}")


def _ui(options: argparse.Namespace) -> None:
    store = options.outputs_dir.resolve() / DATABASE
    if not store.is_file():
        raise FileNotFoundError(
            f"{options.outputs_dir} has no mlflow.db; give the folder that holds the runs (by default outputs)"
        )
    command = ["mlflow", "ui", "--backend-store-uri", sqlite_uri(store), "--port", str(options.port)]
    command += ["--workers", "1"]
    print(shlex.join(command))
    # The server's start page is about traces. These links open the pages of runs.
    for name, number in _experiments(store):
        print(f"{name}: http://127.0.0.1:{options.port}/#/experiments/{number}/runs?workflowType=machine_learning")
    sys.stdout.flush()
    if not options.print:
        # Do not start the eight job processes that only a shared server needs.
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        os.execv(sys.executable, [sys.executable, "-m", *command])


def _experiments(store: Path) -> list[tuple[str, str]]:
    """Name and number of each experiment in the database. Reads SQLite directly, because importing MLflow is slow."""
    query = "SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'active' AND experiment_id > 0"
    try:
        with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.Error:
        return []  # a later MLflow may change the table, and the links are optional


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lightning_nlf.tracking", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    uri = argparse.ArgumentParser(add_help=False)
    uri.add_argument("--tracking_uri", "--tracking-uri", help="URI of the MLflow store (default: the store of the run)")

    command = commands.add_parser("sync", parents=[uri], help="send records that have not reached MLflow")
    command.add_argument("run_dir", type=Path, nargs="+", metavar="RUN_DIR")
    command.set_defaults(command=_sync)

    command = commands.add_parser("register", parents=[uri], help="add a checkpoint to the model registry")
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    command.add_argument("--name", required=True, help="name of the registered model")
    command.add_argument("--alias", default="champion", help="alias of the new version (default: champion)")
    command.add_argument(
        "--checkpoint", default="best", help="file in RUN_DIR/checkpoints, without .ckpt (default: best)"
    )
    command.set_defaults(command=_register)

    command = commands.add_parser("ui", help="start MLflow's web page with the runs")
    command.add_argument("outputs_dir", type=Path, nargs="?", default=Path("outputs"), metavar="OUTPUTS_DIR")
    command.add_argument("--port", type=int, default=5000, help="port of the web page (default: 5000)")
    command.add_argument("--print", action="store_true", help="print the command and the links, but start nothing")
    command.set_defaults(command=_ui)
    return parser


if __name__ == "__main__":
    sys.exit(main())
