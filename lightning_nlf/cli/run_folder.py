"""Where a run lives: one folder with its checkpoints, configuration, journal and exhibits.

By default `outputs/<stems of the yamls, joined by +>-seed<seed>`; `--run_dir` names another.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from lightning_nlf.cli.errors import ConfigurationError, nearest

NAMES = ("best", "last")
_LONGEST_SHOWN = 60  # characters of a path that cannot be one
_HANDED_DOWN = "LIGHTNING_NLF_RUN_DIR"  # to the processes that Lightning starts for the other ranks
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK")
_TRACES = ("config.yaml", "journal.jsonl", "checkpoints", "raw")


def default_folder(configs: Sequence[str], seed: int) -> Path:
    """`outputs/injection+debug-seed0` for conf/injection.yaml, conf/debug.yaml and seed 0."""
    return Path("outputs") / f"{'+'.join(Path(config).stem for config in configs) or 'run'}-seed{seed}"


def resolve(stage: str, run_dir: str | None, ckpt_path: str | None, default: Path) -> tuple[Path, str | None]:
    """The run folder, and the checkpoint file that `best`, `last` or a path stand for.

    A fresh `fit` claims a folder that holds no run yet: by default the next free one of `default`, `default-2`, ….

    Raises:
        ConfigurationError: the folder holds a run already or cannot be written, several runs could be meant, or there
            is no such checkpoint.
    """
    if run_dir is not None and not run_dir.strip():
        raise ConfigurationError("run_dir: is empty; leave it out for a folder below outputs, or name one")
    for key, path in (("run_dir", run_dir), ("ckpt_path", ckpt_path)):
        _check_path(key, str(path or ""))
    if not is_first_process():
        # The first process has looked for a free folder and checked it; by now it may have begun to write.
        folder = Path(os.environ.get(_HANDED_DOWN) or run_dir or default)
    elif run_dir is not None:
        folder = Path(run_dir)
        if stage == "fit":
            _refuse_other_run(folder, ckpt_path)
    elif ckpt_path in NAMES:
        folder = _only_run(default, ckpt_path)
    elif ckpt_path and (owner := _owner(ckpt_path)):
        folder = owner
    else:
        folder = _next_free(default) if stage == "fit" else default.with_name(f"{default.name}-{stage}")
    file = checkpoint_file(folder, stage, ckpt_path)
    os.environ[_HANDED_DOWN] = str(folder.absolute())
    return folder, file


def _check_path(key: str, path: str) -> None:
    """Raises ConfigurationError: no file of any system can be called so."""
    if "\0" in path:
        raise ConfigurationError(f"{key}: {path[:_LONGEST_SHOWN]!r} has a NUL character, which no path can have")
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigurationError(f"{key}: {path[:_LONGEST_SHOWN]}… is too long for a path") from error


def release(folder: Path) -> None:
    """Give back a claimed folder in which nothing happened."""
    for claimed in (folder / "raw", folder):
        try:
            claimed.rmdir()
        except OSError:
            return  # something is in it: a run


def holds_run(folder: Path) -> bool:
    return any((folder / trace).exists() for trace in _TRACES)


def describe_last_checkpoint(folder: Path) -> str:
    """Where a run that broke off can go on from."""
    file = folder / "checkpoints" / "last.ckpt"
    return f"The last good checkpoint is {file}" if file.is_file() else f"There is no checkpoint in {folder} yet"


def is_first_process() -> bool:
    return all(os.environ.get(name, "0") in ("", "0") for name in _RANKS)


def _claim(folder: Path) -> bool:
    """True for the one process that gets it: two runs started together must not share a folder."""
    try:
        if holds_run(folder):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / "raw").mkdir()
        except FileExistsError:
            return False
    except OSError as error:
        raise ConfigurationError(f"run_dir: {folder} cannot be written: {error.strerror}") from error
    return True


def _next_free(default: Path) -> Path:
    number, folder = 1, default
    while not _claim(folder):
        number += 1
        folder = default.with_name(f"{default.name}-{number}")
    return folder


def _refuse_other_run(folder: Path, ckpt_path: str | None) -> None:
    owner = None if ckpt_path is None else _owner(ckpt_path)
    goes_on = ckpt_path in NAMES or (owner is not None and owner.resolve() == folder.resolve())
    if not goes_on and not _claim(folder):
        raise ConfigurationError(
            f"run_dir: {folder} holds a run already. To go on with it: --ckpt_path last; else give another --run_dir"
        )


def _only_run(default: Path, ckpt_path: str) -> Path:
    numbered = re.compile(re.escape(default.name) + r"-(\d+)")
    others = [(int(match[1]), path) for path in default.parent.glob("*") if (match := numbered.fullmatch(path.name))]
    runs = [path for path in (default, *(path for _, path in sorted(others))) if holds_run(path)]
    if len(runs) > 1:
        raise ConfigurationError(
            f"ckpt_path: {ckpt_path!r} could be of {', '.join(map(str, runs))}. Say which with --run_dir"
        )
    return runs[0] if runs else default


def _owner(ckpt_path: str) -> Path | None:
    """The run folder in whose `checkpoints` the file lies."""
    checkpoints = Path(ckpt_path).parent
    return checkpoints.parent if checkpoints.name == "checkpoints" and holds_run(checkpoints.parent) else None


def checkpoint_file(folder: Path, stage: str, ckpt_path: str | None) -> str | None:
    """The file that `best`, `last` or a path stand for in a run folder. Raises ConfigurationError: there is none."""
    if ckpt_path == "hpc" and not list(folder.glob("hpc_ckpt_*.ckpt")):  # Lightning's, after SLURM has ended a run
        raise ConfigurationError(f"ckpt_path: there is no hpc_ckpt_*.ckpt in {folder}")
    if ckpt_path is None or "://" in ckpt_path or ckpt_path.split(":")[0] in ("hpc", "registry"):
        return ckpt_path
    file = folder / "checkpoints" / f"{ckpt_path}.ckpt" if ckpt_path in NAMES else Path(ckpt_path)
    if file.is_file():
        return str(file)
    if stage == "fit" and ckpt_path == "last":
        return None  # one command for a job that may be preempted: the first time there is nothing to go on with
    if ckpt_path not in NAMES and (hint := nearest(ckpt_path, NAMES)):
        raise ConfigurationError(f"ckpt_path: {ckpt_path} does not exist. {hint}")
    there = sorted(path.name for path in file.parent.glob("*.ckpt"))
    found = f"there is {', '.join(there)}" if there else f"there is no checkpoint in {file.parent}"
    raise ConfigurationError(f"ckpt_path: {file} does not exist; {found}")
