"""Derive settings from the rest of the configuration: seeds, tokenizer, network sizes, Adam's knobs, validation.

Settings that are null are derived, and so are sizes that are 0. All settings are derived before the module is built, so
that the config.yaml of a run and its checkpoints contain the values that were used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace, dict_to_namespace

from lightning_nlf.cli.class_lookup import NoSuchClass, look_up
from lightning_nlf.data_source import DataSource, source_of
from lightning_nlf.language import hf_layout

SIZES = ("obs_dim", "action_dim", "vocabulary")
PLAYED_EPS, GIVEN_DECAY = 1e-5, 0.01  # language models: eps if replies are sampled, weight decay if rows are given
RARELY, OFTEN = 10, 4  # validations of a fit that samples: every 10 iterations, and at least 4 in all
CLIP = 0.2  # PPO's, for several passes over a collection
HELD_OUT = 0.1  # share of the prompts in a feedback file that is held out


def complete_data(options: Namespace) -> None:
    """Set seeds to the seed of the run, and the tokenizer to the tokenizer of the model, before the data is built."""
    for key, value in list(options.data.items()):
        if key.rpartition(".")[2] == "seed" and value is None:
            options.data[key] = options.seed_everything
    _complete(options.data, {"use": _feedback(options.model.class_path)})
    if options.model.get("init_args.value") is not None:
        _complete(options.data, {"replies": 1})
    if options.data.get("init_args.val_path") is None:
        _complete(options.data, {"val_share": HELD_OUT})
    folder = next(_folders(options.model), None)
    if folder is not None:
        _complete(options.data, _beside(options.data.class_path, folder))


def complete_trainer(trainer: Namespace, built: object) -> None:
    """Derive how often to validate: each epoch if rows are given, or after several collections."""
    if trainer.check_val_every_n_epoch is None and trainer.val_check_interval is None:
        last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else RARELY * OFTEN
        interval = 1 if source_of(built).rows_are_given else max(1, min(RARELY, last // OFTEN))
        trainer.check_val_every_n_epoch = interval


def complete_model(model: Namespace, data: Namespace, built: object) -> None:
    """Record the arguments that the DataModule derived itself, and derive the model's settings from the data.

    Args:
        built: The DataModule, which must be built first.
    """
    source = source_of(built)
    _complete(data, source.arguments())
    arguments = model.get("init_args")
    if arguments is None:
        return
    for network in _networks(model):
        _complete_sizes(network, source)
    _complete_value(arguments)
    if not source.rows_are_given and data.get("init_args.passes", 1) > 1:
        _complete(model, {"clip": CLIP})
    if arguments.get("optimizer") is None:
        adapted = any(network.get("lora") is not None for network in _networks(model))
        language = source.speaks and not adapted
        decay = GIVEN_DECAY if language and source.rows_are_given else 0.0
        eps = PLAYED_EPS if language and not source.rows_are_given else 1e-8
        _complete(model, {"lr": 0.001, "eps": eps, "weight_decay": decay})


def _complete(part: Namespace, settings: Mapping[str, Any]) -> None:
    """Fill in the `settings` whose arguments are present and null."""
    arguments = part.get("init_args") or Namespace()
    for name, value in settings.items():
        if name in arguments and arguments[name] is None and value is not None:
            arguments[name] = dict_to_namespace(value) if isinstance(value, dict) else value


def _networks(model: Namespace) -> Iterator[Namespace]:
    """The `init_args` of every network."""
    for spec in vars(model.get("init_args") or Namespace()).values():
        if isinstance(spec, Namespace) and isinstance(spec.get("init_args"), Namespace):
            yield spec.init_args


def _complete_sizes(network: Namespace, source: DataSource) -> None:
    shape = network.get("shape")
    places = [(network, name) for name in SIZES if network.get(name) == 0]
    if isinstance(shape, Namespace):
        shape = shape.get("init_args", shape)  # a dataclass can be given with or without class_path
        places += [(shape, name) for name in ("vocabulary", "context") if shape.get(name) == 0]
    sizes = source.sizes if places else {}  # slow, because it may have to build a tokenizer
    for holder, name in places:
        holder[name] = sizes.get(name, 0)


def _complete_value(arguments: Namespace) -> None:
    """Give a value network of states the hidden layers and the standardised inputs of the policy."""
    policy = arguments.get("policy.init_args")
    for value in (arguments.get("value"), arguments.get("q")):
        if policy is not None and isinstance(value, Namespace) and value.get("init_args.weights") is None:
            _complete(value, {name: policy.get(name) for name in ("hidden", "obs_mean", "obs_std")})


def _folders(model: Namespace) -> Iterator[str]:
    """The `weights` of the model that are in the Hugging Face layout: folders, and ids on the hub."""
    for network in _networks(model):
        weights = network.get("weights")
        try:
            if isinstance(weights, str) and hf_layout.folder_of(weights) is not None:
                yield weights
        except ValueError:  # building the network reports this error next
            continue


def _feedback(class_path: str) -> tuple[str, ...] | None:
    """Fields of a feedback file that a module and its mixins learn from."""
    try:
        classes = look_up(class_path, ()).__mro__
    except (NoSuchClass, MemoryError):  # building the class reports this error next
        return None
    return tuple(dict.fromkeys(name for cls in classes for name in vars(cls).get("feedback", ()))) or None


def _beside(class_path: str, folder: str) -> Mapping[str, Any]:
    """Arguments that a DataModule derives from the folder of a model; {} for a class that has no such arguments."""
    try:
        data_class = look_up(class_path, ())
    except (NoSuchClass, MemoryError):  # building the class reports this error next
        return {}
    return data_class.arguments_beside(folder) if hasattr(data_class, "arguments_beside") else {}
