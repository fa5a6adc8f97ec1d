"""Choose the run folder and the checkpoint file of a command.

A run folder holds checkpoints, configuration, journal and exhibits. By default, the run folder is `outputs/<path of the
yaml below conf>-seed<seed>`. `--run_dir` sets a different folder.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from lightning_nlf.cli.errors import ConfigurationError, nearest

NAMES = ("best", "last")
OUTPUTS = "outputs"
CONF = "conf"  # folder of yamls; folders above it are not part of the name of a run
_LONGEST_SHOWN = 60  # characters of a path in a message
_FOLDER_VARIABLE = "LIGHTNING_NLF_RUN_DIR"  # environment variable that passes the folder to the other ranks
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK")
_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))  # set by torchrun and srun for each rank
_TRACES = ("config.yaml", "journal.jsonl", "checkpoints", "raw")


def default_folder(configs: Sequence[str], seed: int) -> Path:
    """The default run folder of a list of yamls.

    The name consists of the path of the first yaml below the nearest `conf`, the stems of the other yamls, and the
    seed. For conf/reviews/dpo.yaml, conf/overlays/debug.yaml and seed 0, it is `outputs/reviews/dpo+debug-seed0`.
    """
    first, *overlays = (Path(config) for config in configs or ["run"])
    below_conf = first.parent.parts[::-1]
    depth = below_conf.index(CONF) if CONF in below_conf else 0
    name = "+".join(path.stem for path in (first, *overlays))
    return Path(OUTPUTS, *reversed(below_conf[:depth])) / f"{name}-seed{seed}"


def resolve(stage: str, run_dir: str | None, ckpt_path: str | None, default: Path) -> tuple[Path, str | None]:
    """Find the run folder of a command, and its checkpoint file.

    A new `fit` claims a folder without a run. By default, this is the first free folder of `default`, `default-2`, ….

    Args:
        ckpt_path: `best`, `last` or a path.

    Raises:
        ConfigurationError: The folder already holds a run or cannot be written, several run folders match, or the
            checkpoint does not exist.
    """
    if run_dir is not None and not run_dir.strip():
        raise ConfigurationError("run_dir: is empty; give a folder, or omit it to use a folder in outputs")
    for key, path in (("run_dir", run_dir), ("ckpt_path", ckpt_path)):
        _check_path(key, str(path or ""))
    if not is_first_process():
        # The first process has already chosen and checked the folder, and may have begun to write into it.
        folder = Path(os.environ.get(_FOLDER_VARIABLE) or run_dir or _owner(ckpt_path or "") or default)
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
    os.environ[_FOLDER_VARIABLE] = str(folder.absolute())
    return folder, file


def require_run_dir(run_dir: str | None, ckpt_path: str | None, nodes: object) -> None:
    """Require `run_dir` if this process cannot pass its run folder to the other ranks, because it did not start them.

    Args:
        nodes: `trainer.num_nodes`; above 1, processes of other machines belong to the run too.

    Raises:
        ConfigurationError: There are such ranks, and neither `run_dir` nor `ckpt_path` gives the folder of the run.
    """
    started_elsewhere = any(
        rank in os.environ and os.environ.get(size, "1") not in ("", "0", "1") for rank, size in _LAUNCHERS
    )
    several = started_elsewhere or nodes not in (None, 1) and _FOLDER_VARIABLE not in os.environ
    if several and run_dir is None and _owner(ckpt_path or "") is None:
        raise ConfigurationError(
            "run_dir: missing. Processes that torchrun, srun or another machine starts must all be given the same "
            "folder, on a disk that they share: add --run_dir outputs/NAME"
        )


def _check_path(key: str, path: str) -> None:
    """Refuse a path that no file system can have.

    Raises:
        ConfigurationError: The path has a NUL character or is too long.
    """
    if "\0" in path:
        raise ConfigurationError(f"{key}: {path[:_LONGEST_SHOWN]!r} has a NUL character, which no path can have")
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigurationError(f"{key}: {path[:_LONGEST_SHOWN]}… is too long for a path") from error


def release(folder: Path) -> None:
    """Remove a claimed folder if nothing was written to it. Also remove folders below `outputs` that are then empty."""
    above = [parent for parent in folder.parents if OUTPUTS in parent.parts]
    for claimed in (folder / "raw", folder, *above):
        try:
            claimed.rmdir()
        except OSError:
            return  # not empty: it holds a run


def holds_run(folder: Path) -> bool:
    return any((folder / trace).exists() for trace in _TRACES)


def describe_last_checkpoint(folder: Path) -> str:
    """A sentence that names the checkpoint from which a failed run can resume."""
    file = folder / "checkpoints" / "last.ckpt"
    return f"The last good checkpoint is {file}" if file.is_file() else f"No checkpoint has been saved in {folder} yet"


def is_first_process() -> bool:
    return all(os.environ.get(name, "0") in ("", "0") for name in _RANKS)


def _claim(folder: Path) -> bool:
    """Claim a folder for a new run.

    Returns False if the folder holds a run, or if another process claimed the folder first.
    """
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
            f"run_dir: {folder} already holds a run. To resume it, add --ckpt_path last, or give another --run_dir"
        )


def _only_run(default: Path, ckpt_path: str) -> Path:
    numbered = re.compile(re.escape(default.name) + r"-(\d+)")
    numbered_runs = [
        (int(match[1]), path) for path in default.parent.glob("*") if (match := numbered.fullmatch(path.name))
    ]
    runs = [path for path in (default, *(path for _, path in sorted(numbered_runs))) if holds_run(path)]
    if len(runs) > 1:
        raise ConfigurationError(
            f"ckpt_path: {ckpt_path!r} matches several runs: {', '.join(map(str, runs))}. Choose one with --run_dir"
        )
    return runs[0] if runs else default


def _owner(ckpt_path: str) -> Path | None:
    """The run folder of a checkpoint file; None if the file is not in the `checkpoints` folder of a run."""
    checkpoints = Path(ckpt_path).parent
    return checkpoints.parent if checkpoints.name == "checkpoints" and holds_run(checkpoints.parent) else None


def checkpoint_file(folder: Path, stage: str, ckpt_path: str | None) -> str | None:
    """The checkpoint file in a run folder, for `best`, `last` or a path.

    Returns None for a `fit` from `last` if no checkpoint exists yet.

    Raises:
        ConfigurationError: The file does not exist.
    """
    if ckpt_path == "hpc" and not list(folder.glob("hpc_ckpt_*.ckpt")):  # Lightning saves it when SLURM stops a run
        raise ConfigurationError(f"ckpt_path: {folder} has no hpc_ckpt_*.ckpt")
    if ckpt_path is None or "://" in ckpt_path or ckpt_path.split(":")[0] in ("hpc", "registry"):
        return ckpt_path
    file = folder / "checkpoints" / f"{ckpt_path}.ckpt" if ckpt_path in NAMES else Path(ckpt_path)
    if file.is_file():
        return str(file)
    if stage == "fit" and ckpt_path == "last":
        return None  # so that one command can both start and resume a job that may be preempted
    if ckpt_path not in NAMES and (hint := nearest(ckpt_path, NAMES)):
        raise ConfigurationError(f"ckpt_path: {ckpt_path} does not exist. {hint}")
    names = sorted(path.name for path in file.parent.glob("*.ckpt"))
    content = ", ".join(names) or "no checkpoint"
    raise ConfigurationError(f"ckpt_path: {file} does not exist; {file.parent} has {content}")
