"""Stop all ranks of a distributed run together, after a signal to one rank or the death of one rank.

This module replaces three parts of Lightning. Lightning's SIGTERM handler calls a collective, which the other ranks do
not answer. Its observer kills all processes when one dies, before the run is marked as failed. Its ranks wait for ever
if the first process dies. Ranks on several machines, or started by torchrun or srun, are watched by `peers`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_nlf.cli import peers
from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.cli.run_folder import describe_last_checkpoint, is_first_process
from lightning_nlf.private_names import RankLauncher, on_sigterm, rank_launcher, set_launcher, stop_as_terminated

_MAIN_PROCESS = "LIGHTNING_NLF_MAIN_PROCESS"  # passes the process id of the first rank to the other ranks
POLL_SECONDS = 0.5
# When another process dies, a collective fails and most ranks end by themselves. After this long, a rank is stuck.
PATIENCE_SECONDS = 15.0

_NONE, _TERMINATE, _INTERRUPT = range(3)


class StopTogether(L.Callback):
    """Stops all ranks after the same batch when one of them receives SIGTERM or Ctrl-C.

    Does nothing for a single process, because Lightning stops it. With several ranks, it costs an all-reduce of one
    number after each batch. A second Ctrl-C stops the process at once.

    Args:
        resumes: Whether this rank found a checkpoint to resume from.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes
        self.peers: peers.PeerWatch | None = None
        self._signal = _NONE
        self._before: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises: ConfigurationError: Some machines have the checkpoint and others do not."""
        if trainer.world_size == 1:
            return
        on_sigterm(trainer, self._terminate)
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]  # every strategy with ranks has it
        if isinstance(environment, LightningEnvironment) and trainer.num_nodes == 1:
            return  # rank 0 has started all other ranks, and `Launcher` watches them
        self.peers, resumed = peers.join(trainer, self.resumes)
        if len(set(resumed)) > 1:
            raise ConfigurationError(
                f"ckpt_path: rank {resumed.index(True)} has the checkpoint, but rank {resumed.index(False)} does not. "
                "The run folder must be on a disk that all machines share"
            )
        self.peers.start(lambda dead: self._stuck(trainer, dead))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.peers is not None:
            self.peers.finish()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.peers is not None and isinstance(exception, KeyboardInterrupt | SIGTERMException):
            self.peers.finish()  # all ranks stop
        if not isinstance(exception, KeyboardInterrupt | SystemExit):  # these two errors end the process anyway
            self._restore()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.world_size == 1:
            return
        mine = torch.tensor(self._signal, device=trainer.strategy.root_device)
        agreed = int(trainer.strategy.reduce(mine, reduce_op="max"))
        if agreed == _INTERRUPT:
            raise KeyboardInterrupt
        if agreed == _TERMINATE and trainer.state.fn != "fit":
            raise SIGTERMException
        if agreed == _TERMINATE:  # all ranks stop when Lightning next checks the flag
            stop_as_terminated(trainer)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end

    def _stuck(self, trainer: L.Trainer, dead: str) -> None:
        """End this process, if it has not ended by itself some time after the death of another rank."""
        assert self.peers is not None
        time.sleep(PATIENCE_SECONDS)
        _end_as_failed(trainer, dead if self.peers.speaks and not self.peers.handled else None)
        os._exit(1)

    def _terminate(self, *args: Any) -> None:
        self._signal = max(self._signal, _TERMINATE)

    def _interrupt(self, *args: Any) -> None:
        if self._signal == _INTERRUPT:
            raise KeyboardInterrupt
        self._signal = _INTERRUPT

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None


class Launcher(RankLauncher):
    """Starts the other ranks as Lightning does, and watches them.

    When a rank dies, the loggers first mark the run as failed. Then the other ranks are killed.
    """

    def launch(self, function: Callable, *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            os.environ[_MAIN_PROCESS] = str(os.getpid())
            try:
                self.start_ranks()
            finally:
                del os.environ[_MAIN_PROCESS]
            threading.Thread(target=self._watch, args=(trainer,), name="rank-watch", daemon=True).start()
        self.share_threads()
        return function(*args, **kwargs)

    def dead_rank(self, patience: float = 0.0) -> str | None:
        """Describe the rank that died, or return None if no rank dies within `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            for rank, process in enumerate(self.procs, start=1):
                if code := process.poll():
                    ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                    return f"rank {rank} (process {process.pid}) {ending}"
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_SECONDS / 5)

    def _watch(self, trainer: L.Trainer | None) -> None:
        while (dead := self.dead_rank()) is None:
            if all(process.returncode == 0 for process in self.procs):
                return
            time.sleep(POLL_SECONDS)
        time.sleep(PATIENCE_SECONDS)  # if the process ends in the meantime, this thread ends too
        _end_as_failed(trainer, dead)
        self.kill(signal.SIGKILL)
        os._exit(1)


def _end_as_failed(trainer: L.Trainer | None, dead: str | None) -> None:
    """Mark the run as failed, and print which rank died."""
    for logger in trainer.loggers if trainer is not None else ():
        logger.finalize("failed")
    where = "" if trainer is None else f" {describe_last_checkpoint(Path(trainer.default_root_dir))}"
    if dead is not None:
        print(f"error: {dead}; the run stops.{where}", file=sys.stderr, flush=True)


def watch(trainer: L.Trainer) -> None:
    """Replace the launcher of a Trainer with `Launcher`, if the Trainer starts its own ranks."""
    if (launcher := rank_launcher(trainer)) is not None:
        set_launcher(trainer, Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes))


def dead_rank(trainer: L.Trainer, error: RuntimeError) -> str | None:
    """Describe the rank whose death made a collective fail with `error`; None for any other error.

    Raises:
        SystemExit: Code 1 if another rank prints the message.
    """
    if not re.search("gloo|nccl|connection|socket", str(error), re.IGNORECASE):
        return None
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning does not declare it
    watches = [callback.peers for callback in callbacks if isinstance(callback, StopTogether) and callback.peers]
    for peer_watch in watches:
        if dead := peer_watch.dead_rank(patience=5.0):
            peer_watch.handled = True
            if not peer_watch.speaks:
                raise SystemExit(1) from error
            return dead
    launcher = trainer.strategy.launcher
    return launcher.dead_rank(patience=5.0) if isinstance(launcher, Launcher) else None


def end_with_first_process() -> None:
    """Make this rank exit soon after the first process ends, even from a blocking call."""
    main = os.environ.pop(_MAIN_PROCESS, None)
    if main is None or is_first_process():
        return

    def wait() -> None:
        while os.getppid() == int(main):
            time.sleep(POLL_SECONDS)
        time.sleep(PATIENCE_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, name="first-process-watch", daemon=True).start()
