"""The command line: `python -m lightning_nlf fit|validate|test|predict --config conf/….yaml`.

Networks and objectives come from the yaml by `class_path`. A mistake in it is one line and exit code 2.
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
from lightning_nlf.cli import chat, describe, messages, noise, preflight, ranks, run_folder, threads, wrong_key
from lightning_nlf.cli.class_lookup import check_dict_kwargs
from lightning_nlf.cli.endings import told_in_one_sentence
from lightning_nlf.cli.errors import OUT_OF_MEMORY, ConfigurationError, RunFailure, nearest, traceback_wanted
from lightning_nlf.cli.parser import Parser, build
from lightning_nlf.cli.saved_config import SaveRunConfig
from lightning_nlf.cli.valid_names import of_the_stage
from lightning_nlf.cli.yaml_places import config_files, find, read_places
from lightning_nlf.construction import surfacing
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
PARTS = ("data", "trainer", "model")  # of a configuration, in the order in which they are built
LOGGER = "lightning_nlf.tracking.logger.MLflowJournalLogger"
TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "logger": {"class_path": LOGGER, "init_args": {"save_dir": "."}},  # the run folder, once it is known
}


@rank_zero_only
def rank_zero_print(line: str) -> None:
    print(line, file=sys.stderr)


class NothingLeft(L.Callback):
    """Says why a fit that was resumed at its end did nothing."""

    def __init__(self) -> None:
        self.began = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done, asked = trainer.current_epoch, trainer.max_epochs
        if not self.began and asked is not None and done >= asked > 0:
            rank_zero_print(f"already at {done} of {asked} iterations; raise trainer.max_epochs to go on")


class CommandLine(SeededCLI):
    """One stage of one run, in its folder.

    Args:
        args: the words of the command line, the stage first.
        run: False builds everything and stops before the stage.

    Raises:
        ConfigurationError: the configuration cannot be run as it is.
    """

    def __init__(self, args: list[str], run: bool = True) -> None:
        self.stage, self.runs = args[0], run
        self.files = config_files(args)
        self.places = read_places(args)
        self.words = args[1:]
        setattr(self, args[0], self.run_stage)  # what LightningCLI calls in the place of `trainer.fit` and so on
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
            load_from_checkpoint_support=False,  # before_instantiate_classes sees to it
        )

    # ---- the parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The stage that was asked for: a parser for each of the others would cost time."""
        return {self.stage: LightningCLI.subcommands()[self.stage]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        assert isinstance(parser, Parser)
        parser.places, parser.words, parser.folder = self.places, self.words, os.getcwd()
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=Seed, default=0, help="Seed of everything that is drawn.")
        parser.add_argument(
            "--run_dir", type=str | None, help="Folder of the run. By default outputs/<yaml>-seed<seed_everything>."
        )
        parser.add_argument(
            "--trust", type=str, nargs="+", default=[], help="Packages of yours that loaded checkpoints may name."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        of_the_stage(parser).set_defaults({"weights_only": True})  # a checkpoint is never run as code
        try:
            try:
                self.config = parser.parse_args(args)
            except IndexError as error:  # jsonargparse's, at an error without a message, as of a full memory
                parser.error(str(error), error)
        except OmegaConfBaseException as error:
            raise ConfigurationError(messages.translate_interpolation(error, self.places)) from error
        except MemoryError as error:
            raise RunFailure(OUT_OF_MEMORY) from error
        check_dict_kwargs(self.places)
        self.options = self.config[self.stage]
        if not isinstance(self.options.trainer, Namespace):
            place, value = find(self.places, ("trainer",)) or "trainer", wrong_key.shown(self.options.trainer)
            raise ConfigurationError(f"{place}: expected keys with values, got {value}. Leave it out for its defaults")
        for key in ("model", "data"):
            if self.options.get(key) is None:
                raise ConfigurationError(f"{key}: missing. Name a yaml with --config, or a class with --{key}")

        # LightningCLI would take the model from a checkpoint: here the yaml says what the model is.
        self.ckpt_path, self.options.ckpt_path = self.options.ckpt_path, None

    def set_seed(self) -> None:
        L.seed_everything(self.options.seed_everything, workers=True, verbose=False)

    # ---- what is built

    def before_instantiate_classes(self) -> None:
        options = self.options
        if options.trainer.default_root_dir is not None:
            raise ConfigurationError("trainer.default_root_dir: the folder of a run is run_dir")
        default = run_folder.default_folder(self.files, options.seed_everything)
        if options.trainer.fast_dev_run:
            default = default.with_name(f"{default.name}-fast_dev_run")
        self.run_dir, options.ckpt_path = run_folder.resolve(self.stage, options.run_dir, self.ckpt_path, default)
        if self.stage == "fit" and options.ckpt_path and options.trainer.max_steps != -1:
            run_folder.release(self.run_dir)
            raise ConfigurationError("trainer.max_steps: a resume is exact by iterations only; use trainer.max_epochs")
        options.run_dir = str(self.run_dir)
        logger = options.trainer.logger
        if logger is True:
            logger = options.trainer.logger = of_the_stage(self.parser).get_defaults().trainer.logger
        for one in logger if isinstance(logger, list) else [logger]:
            if one and one.class_path == LOGGER:
                one.init_args.save_dir = options.run_dir
        for key, base in (("model", ObjectiveModule), ("data", L.LightningDataModule)):
            self.parser.add_instantiator(surfacing(recorded_by(self, key)), base)
        self.parser.add_instantiator(surfacing(), object)

    def instantiate_classes(self) -> None:
        """The data and the Trainer, and then the model, whose weights may take minutes to read."""
        try:
            with told_in_one_sentence(self.places, self.run_dir), trusting(self.options.trust):
                self.config_init = self._instantiated("data", "trainer")
                self.datamodule = self.config_init[self.stage].data
                self.trainer = self.instantiate_trainer()
                model = self.options.model.as_dict()
                ahead = self.runs and preflight.look_ahead(self.trainer, self.stage, self.datamodule, model)
                self.set_seed()  # a network begins with the same numbers, whatever was built before
                self.model = self._instantiated("model")[self.stage].model
                self.model.memory_is_checked = ahead
        # Whatever it was: a run that never began leaves no folder behind.
        except BaseException:
            run_folder.release(self.run_dir)
            raise

    def _instantiated(self, *keys: str) -> Namespace:
        """The configuration, with the objects of these keys alone."""
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
                logger.waits = True  # a run that is refused leaves no trace
        return trainer

    def _callbacks(self, config: Any) -> list[L.Callback]:
        given = config.callbacks or []
        found: list[L.Callback] = list(given) if isinstance(given, list) else [given]
        off: list[type] = [Checkpoint] if config.enable_checkpointing is False else []
        off += [ProgressBar] if config.enable_progress_bar is False else []
        for callback in ALWAYS_ON:
            if not issubclass(callback, tuple(off)) and not any(isinstance(own, callback) for own in found):
                found.append(callback())
        found.append(ranks.StopTogether())
        if self.stage == "fit":
            text = of_the_stage(self.parser).dump(self.options, skip_none=False) + "\n"
            found.insert(0, SaveRunConfig(self.run_dir, text, self.files))
            found.append(NothingLeft())
        return found

    def run_stage(self, **kwargs: Any) -> None:
        if not self.runs:
            run_folder.release(self.run_dir)
            return
        if self.stage != "fit" and self.options.ckpt_path is None:
            rank_zero_print(f"no --ckpt_path: {self._initial_weights()}; --ckpt_path best plays the best of a run")
        try:
            with (
                told_in_one_sentence(self.places, self.run_dir),
                trusting(self.options.trust),
                threads.fitting(self.model),
            ):
                getattr(self.trainer, self.stage)(**kwargs)
        except RuntimeError as error:
            if (dead := ranks.dead_rank(self.trainer, error)) is None:
                raise
            raise RunFailure(f"{dead}. {run_folder.describe_last_checkpoint(self.run_dir)}") from error
        finally:
            run_folder.release(self.run_dir)  # where nothing was left in it: a rehearsal, or bad data

    def _initial_weights(self) -> str:
        policy = (self.options.model.get("init_args") or {}).get("policy") or {}
        weights = (policy.get("init_args") or {}).get("weights")
        return f"the weights are those of {weights}" if weights else "these are the yaml's initial weights"


class Description(CommandLine):
    """`describe`: builds the model of a fit alone, and prints what its loss is. Nothing is read or written."""

    def before_instantiate_classes(self) -> None:
        self.run_dir = run_folder.default_folder(self.files, self.options.seed_everything)

    def instantiate_classes(self) -> None:
        configuration, self.notes = describe.as_built(self.options.model.as_dict())
        with told_in_one_sentence(self.places, self.run_dir), trusting(self.options.trust):
            base, record = {"model": ObjectiveModule}, recorded_by(self, "model")
            self.model = build({"model": configuration}, base, {ObjectiveModule: record})["model"]
        console = Console(width=None if sys.stdout.isatty() else 1000)  # a file is not wrapped
        describe.describe(self.model, console)
        for note in self.notes:
            console.print(Text(note))
        self.subcommand = None  # LightningCLI has nothing to run


def main(args: list[str] | None = None, run: bool = True) -> CommandLine | None:
    """Run one stage, or with `run=False` only build it. Of a chat nothing is left to return.

    Raises:
        SystemExit: 2 after a mistake in the configuration, 1 after a loss, reward or gradient that is not finite. The
            message is on stderr; with LIGHTNING_NLF_TRACEBACK=1 the error itself comes instead. 143 and 130 after a
            SIGTERM and a Ctrl-C, as a shell counts them.
    """
    args = list(sys.argv[1:] if args is None else args)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: a yaml names classes of the working folder
    noise.silence()
    ranks.end_with_first_process()
    try:
        if not args or args[0] not in COMMANDS:
            hint = nearest(args[0], COMMANDS) if args else ""
            raise ConfigurationError(f"the first word is one of {', '.join(COMMANDS)}. {hint}".strip())
        if args[0] == "chat":
            chat.main(args[1:])
            return None
        return Description(["fit", *args[1:]]) if args[0] == "describe" else CommandLine(args, run)
    except (ConfigurationError, RunFailure) as error:
        if traceback_wanted():
            raise
        print("error:", printable(" ".join(str(error).split())), file=sys.stderr)  # in one line
        sys.exit(error.exit_code)
    except SIGTERMException:  # has no code, which would count as success
        # Another rank that ended with a code would count as dead, while the first still has to clean up.
        sys.exit(143 if run_folder.is_first_process() else 0)
    except SystemExit as ending:
        if isinstance(ending.__context__, KeyboardInterrupt):  # Lightning's own answer to a Ctrl-C: 1, as a failure
            sys.exit(130 if run_folder.is_first_process() else 0)
        raise
