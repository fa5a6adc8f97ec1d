"""Save the provenance of a run: command line, code, packages and machine."""

from __future__ import annotations

import threading
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_nlf.callbacks.beginning import Beginning
from lightning_nlf.callbacks.protocols import RunLogger, log_artifacts, rehearses, run_folder
from lightning_nlf.data_source import data_source
from lightning_nlf.tracking.provenance import code_folder, gather


class Provenance(Beginning):
    """Saves the command line, code state, packages and machine in `<run>/provenance`, and logs the configuration.

    The digests of the data and of the tokenizer become tags, if the DataModule has these digests.

    The code may change before a run is resumed, so each resume gets its own folder, `provenance/start-2` and so on. A
    thread gathers the information, because git and the list of packages take longer than an iteration. If a file cannot
    be written, the callback only warns. A resume that is refused writes nothing.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._paths: list[Path] = []
        self._failure: Exception | None = None
        self._digests: dict[str, str] = {}

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or rehearses(trainer):
            return
        folder, self._paths, self._failure = run_folder(trainer), [], None
        source = data_source(trainer)
        digests = {"data_digest": source.data_digest, "tokenizer_digest": source.tokenizer_digest}
        self._digests = {name: digest for name, digest in digests.items() if digest is not None}
        self._thread = threading.Thread(target=self._write, args=(folder / "provenance",), daemon=True)
        self._thread.start()
        configs = [*sorted(folder.glob("config*.yaml")), *sorted((folder / "raw").rglob("*"))]
        log_artifacts(trainer, [path for path in configs if path.is_file()])
        for logger in trainer.loggers:
            if self._digests and isinstance(logger, RunLogger):
                logger.set_tags(self._digests)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._thread is not None and not self._thread.is_alive():
            self._finish(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._finish(trainer)

    def _finish(self, trainer: L.Trainer) -> None:
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._failure is not None:
            rank_zero_warn(f"the provenance of this run is incomplete: {self._failure}")
        log_artifacts(trainer, self._paths)

    def _write(self, folder: Path) -> None:
        try:
            starts = len(list(folder.glob("**/command.txt")))
            folder = folder / f"start-{starts + 1}" if starts else folder
            folder.mkdir(parents=True, exist_ok=True)
            data = "".join(f"{name}: {digest}\n" for name, digest in self._digests.items())
            for name, text in (gather(code_folder()) | ({"data.txt": data} if data else {})).items():
                (folder / name).write_text(text, encoding="utf-8")
                self._paths.append(folder / name)
        # Provenance must never end a run, and a thread cannot raise an error in its caller: `_finish` reports it.
        except Exception as error:
            self._failure = error
