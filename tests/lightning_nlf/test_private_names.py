"""Find out after an upgrade of jsonargparse or Lightning which private name is missing or behaves differently.

`private_names` is imported inside the tests, because the import fails if a name is missing, and the first test must
then report which one.
"""

import ast
import importlib
import inspect
import signal
from argparse import Action
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name, walk_packages
from unittest.mock import call

import lightning as L
import pytest
from jsonargparse import Namespace, get_loader
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

ROOT = Path(__file__).parents[2]
CONNECTOR = "lightning.pytorch.trainer.connectors"
LAUNCHER = "lightning.pytorch.strategies.launchers.subprocess_script._SubprocessScriptLauncher"
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
NAMES = [  # path, call, purpose
    ("jsonargparse._common.parser_context", call(lenient_check=True), "checking null and `${…}` in a yaml"),
    ("jsonargparse._common.parsing_settings", None, "what a checkpoint may import"),
    ("jsonargparse._loaders_dumpers.get_yaml_default_loader", call(), "reading `1:30` and `010` in a yaml as text"),
    (
        "jsonargparse._typehints.ActionTypeHint.is_subclass_typehint",
        call(int, False, True),
        "refusing `{}` for a class",
    ),
    ("jsonargparse._typehints.ActionTypeHint.is_return_subclass_typehint", call(int), "refusing `{}` for a class"),
    ("jsonargparse.ArgumentParser._check_value_key", call(0, 0, 0, "key", {}), "refusing null for a number"),
    ("typing.Protocol._is_protocol", None, "which classes fit an argument whose type is a protocol"),
    ("lightning.pytorch.cli.LightningCLI._set_seed", call(0), "seeding a run without a line about it"),
    ("lightning.pytorch.cli._InstantiatorFn", call(cli=0, key=""), "hyperparameters in a checkpoint"),
    (
        "lightning.pytorch.core.mixins.hparams_mixin._given_hyperparameters_context",
        call({}, ""),
        "the next checkpoint of a module that was loaded from one",
    ),
    (f"{CHECKPOINT}._should_skip_saving_checkpoint", call(0, 0), "when last.ckpt and best.ckpt are written"),
    (f"{CHECKPOINT}._save_checkpoint", call(0, 0, ""), "writing last.ckpt and best.ckpt"),
    (f"{CONNECTOR}.checkpoint_connector._CheckpointConnector", None, "naming a checkpoint that cannot be resumed"),
    (LAUNCHER, call(0, 2, 1), "starting several processes"),
    (f"{LAUNCHER}._call_children_scripts", call(0), "starting several processes"),
    (
        "lightning.fabric.utilities.distributed._set_num_threads_if_needed",
        call(num_processes=2),
        "the threads of each of several processes",
    ),
    (f"{CONNECTOR}.signal_connector._SignalConnector._sigterm_notifier_fn", None, "a SIGTERM of several processes"),
]
MADE = [  # attributes that only objects have
    ("jsonargparse", lambda: parser(), "_actions", "finding the wrong key of a yaml"),
    ("jsonargparse", lambda: parser()._actions[-1], "_typehint", "finding the wrong value of a yaml"),
    ("lightning", lambda: L.Trainer(logger=False, accelerator="cpu"), "_signal_connector", "a SIGTERM"),
    ("lightning", lambda: L.Trainer(logger=False, accelerator="cpu").strategy, "_launcher", "watching processes"),
    ("lightning", ModelParallelStrategy, "_save_distributed_checkpoint", "refusing checkpoints that are folders"),
]


def parser(parser_class: type = LightningArgumentParser) -> LightningArgumentParser:
    instance = parser_class(exit_on_error=False)
    instance.add_argument("--rate", type=int, default=1)
    return instance


def missing_message(library: str, name: str, purpose: str) -> str:
    number = f" {version(library)}" if library != "typing" else ""
    return f"{library}{number} has no {name}; it is used for {purpose} (lightning_nlf/private_names.py)"


@pytest.mark.parametrize("path, how, purpose", NAMES, ids=[path for path, *_ in NAMES])
def test_the_library_has_the_name(path, how, purpose):
    try:
        attribute = resolve_name(path)
    except (ImportError, AttributeError):
        pytest.fail(missing_message(path.split(".")[0], path, purpose))
    if how is not None:
        try:
            inspect.signature(attribute).bind(*how.args, **how.kwargs)
        except TypeError as error:
            pytest.fail(f"{path} is called in another way: {error}; it is used for {purpose}")


@pytest.mark.parametrize("library, make, name, purpose", MADE, ids=[name for _, _, name, _ in MADE])
def test_an_object_of_the_library_has_the_name(library, make, name, purpose):
    assert hasattr(make(), name), missing_message(library, name, purpose)


def test_every_private_name_is_listed():
    tree = ast.parse((ROOT / "lightning_nlf" / "private_names.py").read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    private = {name for name in names if name.startswith("_") and name.isidentifier() and name[:2] != "__"}
    prefixes = {"_restore"}
    assert private - prefixes <= {part for path, *_ in NAMES for part in path.split(".")} | {
        name for *_, name, _ in MADE
    }


# ---- overriding by accident


@cache
def classes_of_ours() -> list[type]:
    packages = [importlib.import_module(name) for name in ("lightning_nlf", "data_modules")]
    names = [info.name for package in packages for info in walk_packages(package.__path__, f"{package.__name__}.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return [member for module in modules for member in vars(module).values() if inspect.isclass(member)]


def is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] in ("lightning_nlf", "data_modules")


def test_no_class_overrides_a_private_name_of_a_library():
    """On purpose or by accident. `_abc_impl` belongs to Python."""
    overridden = set()
    for cls in filter(is_ours, classes_of_ours()):
        libraries = {base for base in cls.__mro__ if base.__module__.split(".")[0] in ("jsonargparse", "lightning")}
        private = {name for base in libraries for name in vars(base) if name[0] == "_" and name[:2] != "__"}
        ours = {base for base in cls.__mro__ if is_ours(base)}
        overridden |= {(base.__module__, name) for base in ours for name in private & vars(base).keys() - {"_abc_impl"}}
    assert overridden == {("lightning_nlf.private_names", name) for name in ("_check_value_key", "_set_seed")}


# ---- jsonargparse


def test_arguments_and_their_types():
    from lightning_nlf.private_names import arguments_of, set_type, type_of

    instance = parser()
    rate = arguments_of(instance)[-1]
    assert rate.dest == "rate" and type_of(rate) is int and type_of(Action([], "x")) is None
    set_type(rate, float)
    assert instance.parse_object({"rate": 0.5}).rate == 0.5


def test_a_parser_sees_every_value_before_it_is_checked():
    from lightning_nlf.private_names import CheckedParser

    class Doubling(CheckedParser):
        def check_value(self, action, value, check):
            return check(value) if action.dest != "rate" else check(2 * value)

    assert parser(Doubling).parse_object({"rate": 3}).rate == 6


def test_a_lenient_check_lets_null_pass():
    from lightning_nlf.private_names import arguments_of, lenient

    instance = parser()
    checked = partial(instance._check_value_key, arguments_of(instance)[-1], None, "rate", Namespace())
    with lenient(True):
        assert checked() is None
    with lenient(False), pytest.raises(TypeError, match="rate"):
        checked()


@pytest.mark.parametrize(
    "kind, expected",
    [
        (nn.Module, True),
        (nn.Module | None, True),
        (list[nn.Module], True),
        (Callable[[list], nn.Module], True),
        (int, False),
        (dict[str, int], False),
        (list[int] | None, False),
    ],
)
def test_which_types_want_a_class(kind, expected):
    from lightning_nlf.private_names import wants_class

    assert wants_class(kind) is expected


def test_yaml_scalars_without_a_pattern_are_text():
    from lightning_nlf.private_names import yaml_resolvers

    assert get_loader("yaml")("7") == 7
    patterns = yaml_resolvers()["7"]
    before = list(patterns)
    try:
        patterns.clear()
        assert get_loader("yaml")("7") == "7"
    finally:
        patterns[:] = before


def test_imports_are_allowed_again_after_the_policy():
    from lightning_nlf.private_names import imports_only

    instance = LightningArgumentParser(exit_on_error=False)
    instance.add_argument("--network", type=nn.Module)
    outside = {"network": {"class_path": "lightning.LightningModule"}}
    with imports_only(["torch"]):
        assert instance.parse_object({"network": {"class_path": "torch.nn.Identity"}}).network.class_path
        with pytest.raises(Exception, match="not allowed"):
            instance.parse_object(outside)
    assert instance.parse_object(outside).network.class_path


# ---- Lightning


class Recorded(L.LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_a_module_keeps_what_it_is_recorded_as():
    from lightning_nlf.private_names import recorded_as

    with recorded_as({"width": "as the yaml has it"}):
        module = Recorded(3)
    assert module.hparams["width"] == "as the yaml has it"
    assert module.hparams["_instantiator"] == "lightning.pytorch.cli.instantiate_module"
    assert dict(Recorded(3).hparams) == {"width": 3}


def test_the_trainer_of_a_module():
    from lightning_nlf.private_names import trainer_of

    module, trainer = Recorded(3), L.Trainer(logger=False, accelerator="cpu")
    assert trainer_of(module) is None
    module.trainer = trainer
    assert trainer_of(module) is trainer


@pytest.mark.parametrize("start", ["restore", "_restore", "resume_start"])
def test_what_restores_a_checkpoint_is_still_called_so(start):
    from lightning_nlf.private_names import RESTORING_FUNCTIONS, RESTORING_MODULE

    assert start in RESTORING_FUNCTIONS
    assert any(name.startswith(start) for name in vars(resolve_name(f"{RESTORING_MODULE}._CheckpointConnector")))


def test_a_launcher_can_be_replaced():
    from lightning_nlf.private_names import RankLauncher, rank_launcher, set_launcher

    assert rank_launcher(L.Trainer(logger=False, accelerator="cpu", devices=1)) is None
    trainer = L.Trainer(logger=False, accelerator="cpu", devices=2, strategy="ddp")
    launcher = rank_launcher(trainer)
    assert launcher is not None
    ours = RankLauncher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
    set_launcher(trainer, ours)
    assert trainer.strategy.launcher is ours and ours.procs == [] and ours.num_processes == 2


def test_a_sigterm_comes_to_our_handler():
    from lightning_nlf.private_names import on_sigterm, stop_as_terminated

    numbers: list[int] = []
    trainer = L.Trainer(logger=False, accelerator="cpu")
    on_sigterm(trainer, lambda number, frame: numbers.append(number))
    trainer._signal_connector.register_signal_handlers()
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        trainer._signal_connector.teardown()
    assert numbers == [signal.SIGTERM] and not trainer.received_sigterm
    stop_as_terminated(trainer)
    assert trainer.received_sigterm
