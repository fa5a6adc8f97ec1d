"""The command line: `python -m lightning_nlf fit|validate|test|predict --config conf/….yaml`.

The yaml names networks and objectives by `class_path`. A mistake in the yaml ends with a one-line error and exit code
2.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text

from lightning_nlf import callbacks
from lightning_nlf.checkpoint_io import RunCheckpointIO
from lightning_nlf.cli import chat, derived, describe, messages, noise, preflight, ranks, run_folder, threads, wrong_key
from lightning_nlf.cli.class_lookup import check_dict_kwargs
from lightning_nlf.cli.endings import user_errors
from lightning_nlf.cli.errors import OUT_OF_MEMORY, ConfigurationError, RunFailure, nearest, traceback_wanted
from lightning_nlf.cli.parser import Parser, build
from lightning_nlf.cli.saved_config import SaveRunConfig
from lightning_nlf.cli.valid_names import stage_parser
from lightning_nlf.cli.yaml_places import config_files, find, read_places
from lightning_nlf.construction import ConstructionFailed, surfacing
from lightning_nlf.data_source import source_of
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.numbers import Seed
from lightning_nlf.private_names import SeededCLI, recorded_by
from lightning_nlf.terminal import printable
from lightning_nlf.tracking.logger import MLflowJournalLogger
from lightning_nlf.trust import trusting

COMMANDS = ("fit", "validate", "test", "predict", "describe", "chat")
ALWAYS_ON: tuple[type[L.Callback], ...] = (
    callbacks.DiskSpace,
    callbacks.FitProgress,
    callbacks.Exhibits,
    callbacks.Provenance,
    callbacks.BestCheckpoint,
    callbacks.LastCheckpoint,
    callbacks.HuggingFaceExport,
)
PARTS = ("data", "trainer", "model")  # in the order in which they are built
LOGGER = "lightning_nlf.tracking.logger.MLflowJournalLogger"
TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "check_val_every_n_epoch": None,  # derived
    "logger": {"class_path": LOGGER, "init_args": {"save_dir": "."}},  # the run folder replaces it
}


@rank_zero_only
def rank_zero_print(line: str) -> None:
    print(line, file=sys.stderr)


class NothingLeft(L.Callback):
    """Prints why a fit did nothing, if it was resumed after its last iteration."""

    def __init__(self) -> None:
        self.began = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        iteration, last = trainer.current_epoch, trainer.max_epochs
        if not self.began and last is not None and iteration >= last > 0:
            rank_zero_print(
                f"nothing to do: the run has finished {iteration} of {last} iterations. "
                "To train longer, raise trainer.max_epochs"
            )


class CommandLine(SeededCLI):
    """Builds one stage of a run from the command line, and runs it.

    Args:
        args: Arguments of the command line, beginning with the stage.
        run: If False, everything is built but the stage is not run.

    Raises:
        ConfigurationError: The configuration cannot be run.
    """

    def __init__(self, args: list[str], run: bool = True) -> None:
        self.stage, self.runs = args[0], run
        self.files = config_files(args)
        self.places = read_places(args)
        self.words = args[1:]
        setattr(self, args[0], self.run_stage)  # LightningCLI calls this method instead of `trainer.fit`
        super().__init__(
            ObjectiveModule,
            L.LightningDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False, "prog": "python -m lightning_nlf"},
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # before_instantiate_classes resolves ckpt_path
        )

    # ---- the parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the requested stage, because building the parsers of all stages takes time."""
        return {self.stage: LightningCLI.subcommands()[self.stage]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        assert isinstance(parser, Parser)
        parser.places, parser.words, parser.folder = self.places, self.words, os.getcwd()
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=Seed, default=0, help="Seed of all random numbers.")
        parser.add_argument(
            "--run_dir", type=str | None, help="Folder of the run (default: outputs/<yaml>-seed<seed_everything>)."
        )
        parser.add_argument(
            "--trust", type=str, nargs="+", default=[], help="Your packages whose classes a checkpoint may load."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        stage_parser(parser).set_defaults({"weights_only": True})  # a checkpoint never runs code
        try:
            try:
                self.config = parser.parse_args(args)
            except IndexError as error:  # raised by jsonargparse for an error without a message, such as MemoryError
                parser.error(str(error), error)
        except OmegaConfBaseException as error:
            raise ConfigurationError(messages.translate_interpolation(error, self.places)) from error
        except MemoryError as error:
            raise RunFailure(OUT_OF_MEMORY) from error
        check_dict_kwargs(self.places)
        self.options = self.config[self.stage]
        if not isinstance(self.options.trainer, Namespace):
            place, value = find(self.places, ("trainer",)) or "trainer", wrong_key.as_yaml(self.options.trainer)
            raise ConfigurationError(f"{place}: expected keys with values, got {value}. Omit it to use the defaults")
        for key in ("model", "data"):
            if self.options.get(key) is None:
                raise ConfigurationError(f"{key}: missing. Give a yaml with --config, or a class with --{key}")

        derived.complete_data(self.options)

        # LightningCLI would build the model from the checkpoint's settings, but here the yaml decides.
        self.ckpt_path, self.options.ckpt_path = self.options.ckpt_path, None

    def set_seed(self) -> None:
        L.seed_everything(self.options.seed_everything, workers=True, verbose=False)

    # ---- building the run

    def before_instantiate_classes(self) -> None:
        options = self.options
        if options.trainer.default_root_dir is not None:
            raise ConfigurationError("trainer.default_root_dir: not supported; set run_dir instead")
        default = run_folder.default_folder(self.files, options.seed_everything)
        if options.trainer.fast_dev_run:
            default = default.with_name(f"{default.name}-fast_dev_run")
        run_folder.require_run_dir(options.run_dir, self.ckpt_path, options.trainer.num_nodes)
        self.run_dir, options.ckpt_path = run_folder.resolve(self.stage, options.run_dir, self.ckpt_path, default)
        if self.stage == "fit" and options.ckpt_path and options.trainer.max_steps != -1:
            run_folder.release(self.run_dir)
            raise ConfigurationError("trainer.max_steps: not supported when resuming; set trainer.max_epochs instead")
        options.run_dir = str(self.run_dir)
        logger = options.trainer.logger
        if logger is True:
            logger = options.trainer.logger = stage_parser(self.parser).get_defaults().trainer.logger
        for logger_options in logger if isinstance(logger, list) else [logger]:
            if logger_options and logger_options.class_path == LOGGER:
                logger_options.init_args.save_dir = options.run_dir
        for key, base in (("model", ObjectiveModule), ("data", L.LightningDataModule)):
            self.parser.add_instantiator(surfacing(recorded_by(self, key)), base)
        self.parser.add_instantiator(surfacing(), object)

    def instantiate_classes(self) -> None:
        """Build the data and the Trainer first, then the model, because reading its weights can take minutes."""
        try:
            with user_errors(self.places, self.run_dir), trusting(self.options.trust):
                self.config_init = self._instantiated("data", "trainer")
                self.datamodule = self.config_init[self.stage].data
                self._complete_model()
                for trainer in (self.options.trainer, self.config_init[self.stage].trainer):
                    derived.complete_trainer(trainer, self.datamodule)
                self.trainer = self.instantiate_trainer()
                model = self.options.model.as_dict()
                ahead = self.runs and preflight.look_ahead(self.trainer, self.stage, self.datamodule, model)
                self.set_seed()  # the initial weights must not depend on what was built before
                self.model = self._instantiated("model")[self.stage].model
                self.model.memory_is_checked = ahead
        except BaseException:
            run_folder.release(self.run_dir)  # a run that never started leaves no folder
            raise

    def _complete_model(self) -> None:
        derived.complete_model(self.options.model, self.options.data, self.datamodule)
        vars(self).pop("config_dump", None)  # LightningCLI would record the model's arguments from this old copy

    def _instantiated(self, *keys: str) -> Namespace:
        """The configuration with built objects in place of these `keys`, and without the other PARTS."""
        parts = Namespace({key: value for key, value in vars(self.options).items() if key in keys or key not in PARTS})
        return self.parser.instantiate_classes(Namespace({"subcommand": self.stage, self.stage: parts}))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[self.stage].trainer
        plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins] if config.plugins else []
        kwargs |= {
            "callbacks": self._callbacks(config),
            "plugins": [*plugins, RunCheckpointIO()],
            "default_root_dir": str(self.run_dir),
        }
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise ConfigurationError(messages.translate_trainer(error, self.places)) from error
        ranks.watch(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, MLflowJournalLogger):
                logger.waits = True  # a refused run must not appear in MLflow
        return trainer

    def _callbacks(self, config: Any) -> list[L.Callback]:
        configured = config.callbacks or []
        chosen: list[L.Callback] = list(configured) if isinstance(configured, list) else [configured]
        off: list[type] = [Checkpoint] if config.enable_checkpointing is False else []
        off += [ProgressBar] if config.enable_progress_bar is False else []
        for callback in ALWAYS_ON:
            if not issubclass(callback, tuple(off)) and not any(isinstance(instance, callback) for instance in chosen):
                chosen.append(callback())
        solved = source_of(self.datamodule).solved
        if solved is not None and not any(isinstance(instance, callbacks.StopWhenSolved) for instance in chosen):
            chosen.append(callbacks.StopWhenSolved(solved))
        chosen.append(ranks.StopTogether(resumes=self.options.ckpt_path is not None))
        if self.stage == "fit":
            text = stage_parser(self.parser).dump(self.options, skip_none=False) + "\n"
            chosen.insert(0, SaveRunConfig(self.run_dir, text, self.files))
            chosen.append(NothingLeft())
        return chosen

    def run_stage(self, **kwargs: Any) -> None:
        if not self.runs:
            run_folder.release(self.run_dir)
            return
        if self.stage != "fit" and self.options.ckpt_path is None:
            hint = "To evaluate a trained run, add --ckpt_path best"
            rank_zero_print(f"no --ckpt_path: {self._initial_weights()}. {hint}")
        try:
            with (
                user_errors(self.places, self.run_dir),
                trusting(self.options.trust),
                threads.fitting(self.model),
            ):
                getattr(self.trainer, self.stage)(**kwargs)
        except RuntimeError as error:
            if (dead := ranks.dead_rank(self.trainer, error)) is None:
                raise
            raise RunFailure(f"{dead}. {run_folder.describe_last_checkpoint(self.run_dir)}") from error
        finally:
            run_folder.release(self.run_dir)  # removes an empty folder, as after fast_dev_run or bad data

    def _initial_weights(self) -> str:
        policy = (self.options.model.get("init_args") or {}).get("policy") or {}
        weights = (policy.get("init_args") or {}).get("weights")
        return f"evaluating the weights of {weights}" if weights else "evaluating the untrained initial weights"


class Description(CommandLine):
    """The `describe` command: builds the model of a fit and prints its loss. It reads no weights and writes no files.

    The DataModule is built too, because it gives the sizes of networks. If it cannot be built, because a file that it
    reads does not exist yet, small sizes are used instead.
    """

    def before_instantiate_classes(self) -> None:
        self.run_dir = run_folder.default_folder(self.files, self.options.seed_everything)
        self.parser.add_instantiator(surfacing(), object)

    def _take_sizes(self) -> list[str]:
        try:
            self.datamodule, note = self._instantiated("data")[self.stage].data, []
        except ConstructionFailed as failed:
            self.datamodule = describe.StandIn(self.options.model.as_dict())
            note = [f"data: cannot be built, so small sizes replace its own: {failed.__cause__}"]
        self._complete_model()
        return note

    def instantiate_classes(self) -> None:
        self.notes = self._take_sizes()
        configuration, notes = describe.as_built(self.options.model.as_dict())
        self.notes += notes
        with user_errors(self.places, self.run_dir), trusting(self.options.trust):
            base, record = {"model": ObjectiveModule}, recorded_by(self, "model")
            self.model = build({"model": configuration}, base, {ObjectiveModule: record})["model"]
            console = Console(width=None if sys.stdout.isatty() else 1000)  # do not wrap lines in a file or pipe
            describe.describe(self.model, console)
        for note in self.notes:
            console.print(Text(note))
        self.subcommand = None  # LightningCLI has nothing to run


def main(args: list[str] | None = None, run: bool = True) -> CommandLine | None:
    """Run one command, or only build its objects if `run` is False. Returns None after a chat.

    Raises:
        SystemExit: Code 2 after a mistake in the configuration; 1 after a failed run, such as a non-finite loss;
            143 after SIGTERM; 130 after Ctrl-C. The message is on stderr. With LIGHTNING_NLF_TRACEBACK=1 the error is
            raised instead.
    """
    args = list(sys.argv[1:] if args is None else args)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as with `python -m`, a yaml may name classes in the working folder
    noise.silence()
    ranks.end_with_first_process()
    try:
        if not args or args[0] not in COMMANDS:
            hint = nearest(args[0], COMMANDS) if args else ""
            raise ConfigurationError(f"the first argument must be one of {', '.join(COMMANDS)}. {hint}".strip())
        if args[0] == "chat":
            chat.main(args[1:])
            return None
        return Description(["fit", *args[1:]]) if args[0] == "describe" else CommandLine(args, run)
    except (ConfigurationError, RunFailure) as error:
        if traceback_wanted():
            raise
        print("error:", printable(" ".join(str(error).split())), file=sys.stderr)
        sys.exit(error.exit_code)
    except SIGTERMException:  # without an exit code, this would count as success
        # The first process treats a rank that exits with a code as dead, but the first process must still clean up.
        sys.exit(143 if run_folder.is_first_process() else 0)
    except SystemExit as ending:
        if isinstance(ending.__context__, KeyboardInterrupt):  # Lightning exits with 1 after Ctrl-C
            sys.exit(130 if run_folder.is_first_process() else 0)
        raise
