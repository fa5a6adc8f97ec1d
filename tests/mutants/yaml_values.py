"""Yamls with a wrong value: another type, out of range, null, or another class."""

from __future__ import annotations

import random
from types import NoneType
from typing import Any, get_args

from mutants.yaml_damage import (
    FILE,
    OUT_OF_RANGE,
    Spoilt,
    annotation,
    at,
    at_key,
    classes,
    dotted,
    dump,
    misspelt,
    mutation,
    nodes,
    numbers,
    pick,
    put,
    replaced,
)

Config = dict[str, Any]


@mutation
def word_for_a_number(rng: random.Random, config: Config) -> Spoilt | None:
    return replaced(config, pick(rng, numbers(config)), rng.choice(["many", "high", "1e", "one", "3 4"]))


@mutation
def decimal_comma(rng: random.Random, config: Config) -> Spoilt | None:
    return replaced(config, pick(rng, numbers(config)), rng.choice(["0,02", "1,5", "0,9"]))


@mutation
def list_for_a_number(rng: random.Random, config: Config) -> Spoilt | None:
    return replaced(config, pick(rng, numbers(config)), rng.choice([[], [1, 2], ["a"]]))


@mutation
def mapping_for_a_number(rng: random.Random, config: Config) -> Spoilt | None:
    path = pick(rng, numbers(config))
    return path and replaced(config, path, {"a": 1}, *at_key((*path, "a")))


@mutation
def yes_for_a_number(rng: random.Random, config: Config) -> Spoilt | None:
    return replaced(config, pick(rng, numbers(config)), rng.choice([True, False]))


@mutation
def null_for_a_number(rng: random.Random, config: Config) -> Spoilt | None:
    sure = [path for path in numbers(config) if NoneType not in get_args(annotation(config, path) or NoneType | int)]
    return replaced(config, pick(rng, sure), None)


@mutation
def out_of_range(rng: random.Random, config: Config) -> Spoilt | None:
    path = pick(rng, [path for path in numbers(config) if path[-1] in OUT_OF_RANGE])
    return path and replaced(config, path, rng.choice(OUT_OF_RANGE[str(path[-1])]))


@mutation
def sixties(rng: random.Random, config: Config) -> Spoilt | None:
    """In YAML 1.1, `1:30` is the number 90."""
    return replaced(config, pick(rng, numbers(config)), "RAW", RAW=rng.choice(["1:30", "2:00", "0:10"]))


def _lists(config: Config) -> list[tuple[str | int, ...]]:
    return [p for p, v in nodes(config) if isinstance(v, list) and v and isinstance(v[0], (int, float))]


@mutation
def words_for_a_list(rng: random.Random, config: Config) -> Spoilt | None:
    return replaced(config, pick(rng, _lists(config)), rng.choice(["32, 32", "32", 32, {"a": 1}, "[32"]))


@mutation
def wrong_entry_of_a_list(rng: random.Random, config: Config) -> Spoilt | None:
    path = pick(rng, _lists(config))
    if path is None:
        return None
    entries = [*at(config, path), rng.choice(["x", "0,5", [1], {"a": 1}, None])]
    names = tuple(f"{dotted(path)}{end}" for end in (f" ({FILE}", f".{len(entries) - 1} ({FILE}"))
    return replaced(config, path, entries, *names)


@mutation
def list_for_a_class(rng: random.Random, config: Config) -> Spoilt | None:
    return replaced(config, pick(rng, classes(config)), rng.choice([[], [1], ["a", "b"]]))


@mutation
def scalar_for_a_class(rng: random.Random, config: Config) -> Spoilt | None:
    may_be_number = [p for p in classes(config) if p[-1] not in ("imitation_weight", "probability")]
    return replaced(config, pick(rng, may_be_number), rng.choice([3, 0.5, True, "nonsense"]))


@mutation
def null_for_a_class(rng: random.Random, config: Config) -> Spoilt | None:
    needed = [path for path in classes(config) if path[-1] in ("policy", "task", "tokenizer", "optimizer", "reward")]
    sure = [path for path in needed if NoneType not in get_args(annotation(config, path) or NoneType | int)]
    return replaced(config, pick(rng, sure), None)


@mutation
def misspelt_class(rng: random.Random, config: Config) -> Spoilt | None:
    path = rng.choice(classes(config))
    module, _, name = at(config, path)["class_path"].rpartition(".")
    return replaced(config, (*path, "class_path"), f"{module}.{misspelt(rng, name)}")


@mutation
def misspelt_module(rng: random.Random, config: Config) -> Spoilt | None:
    path = rng.choice(classes(config))
    parts = at(config, path)["class_path"].split(".")
    place = rng.randrange(len(parts) - 1)
    parts[place] = misspelt(rng, parts[place])
    return replaced(config, (*path, "class_path"), ".".join(parts))


@mutation
def class_of_another_kind(rng: random.Random, config: Config) -> Spoilt | None:
    wrong = ["torch.nn.Linear", "collections.OrderedDict", "pathlib.Path", "lightning_nlf.batch.Batch", "os.getcwd"]
    return replaced(config, (*rng.choice(classes(config)), "class_path"), rng.choice(wrong))


@mutation
def class_path_of_another_type(rng: random.Random, config: Config) -> Spoilt | None:
    path = rng.choice(classes(config))
    value = rng.choice([None, 3, [], "", "lightning_nlf", ".", "a b"])
    return replaced(config, (*path, "class_path"), value, *at_key(path), f"{dotted(path)}: missing")


@mutation
def broken_interpolation(rng: random.Random, config: Config) -> Spoilt | None:
    path = pick(rng, numbers(config))
    wrong = ["${modle.x}", "${seed_everythin}", "${trainer.max_epoch}", "${seed_everything", "${}", "${a b}"]
    return path and replaced(config, path, rng.choice([*wrong, f"${{{dotted(path)}}}"]))


@mutation
def interpolation_of_another_type(rng: random.Random, config: Config) -> Spoilt | None:
    return replaced(config, pick(rng, numbers(config)), rng.choice(["${data.class_path}", "${data}", "${trainer}"]))


@mutation
def entries_of_callbacks(rng: random.Random, config: Config) -> Spoilt | None:
    wrong = rng.choice([{}, None, 3, "[]", "Nonsense", {"init_args": {}}, {"class_path": "torch.nn.Linear"}])
    trainer = config.get("trainer") or {}
    trainer = {**trainer, "callbacks": [*trainer.get("callbacks", []), wrong]}
    text = dump(put(config, ("trainer",), trainer))
    return Spoilt(f"callbacks: - {wrong}", text, ("trainer.callbacks",))


@mutation
def number_on_the_command_line(rng: random.Random, config: Config) -> Spoilt | None:
    path = pick(rng, [path for path in numbers(config) if int not in map(type, path)])
    if path is None:
        return None
    shorter = tuple(key for key in path if key != "init_args")
    flag = "--" + dotted(rng.choice([path, shorter]))
    value = rng.choice(["many", "0,02", "[]", "{a: 1}", "[1, 2]", "1e"])
    words = rng.choice([(flag, value), (f"{flag}={value}",)])
    names = tuple(f"{name}{end}" for name in (flag, "--" + dotted(path)) for end in (":", ".a:"))
    return Spoilt(f"{flag} {value}", dump(config), names, words)


@mutation
def flag_misspelt(rng: random.Random, config: Config) -> Spoilt | None:
    path = pick(rng, [path for path in numbers(config) if int not in map(type, path)])
    if path is None:
        return None
    wrong = (*path[:-1], misspelt(rng, str(path[-1])))
    flag = "--" + dotted(key for key in wrong if key != "init_args")
    return Spoilt(f"{flag} 1", dump(config), (f"{flag}:",), (flag, "1"))


@mutation
def class_on_the_command_line(rng: random.Random, config: Config) -> Spoilt | None:
    path = pick(rng, [path for path in classes(config) if int not in map(type, path)])
    if path is None:
        return None
    flag = "--" + dotted(key for key in path if key != "init_args")
    module, _, name = at(config, path)["class_path"].rpartition(".")
    value = rng.choice([f"{module}.{misspelt(rng, name)}", misspelt(rng, name), "torch.nn.Linear", "[]", "null"])
    if value == "null" and path[-1] not in ("policy", "tokenizer", "optimizer", "model", "data"):
        value = "[]"
    names = (f"{flag}:", f"{flag}.class_path:", f"{flag.lstrip('-')}: missing")
    return Spoilt(f"{flag} {value}", dump(config), names, (flag, value))
