"""Yamls with a wrong key, invalid syntax, or too much content."""

from __future__ import annotations

import random
from typing import Any

from mutants.yaml_damage import (
    FILE,
    Spoilt,
    at,
    at_key,
    classes,
    dotted,
    dump,
    keys,
    misspelt,
    mutation,
    numbers,
    parameter,
    pick,
    put,
    replaced,
    without,
)

Config = dict[str, Any]
_LONG = "x" * 5000


def _renamed(config: Config, path: tuple[str | int, ...], name: str) -> Config:
    """Rename one key of a configuration."""
    changed = put(config, path, at(config, path))
    node = at(changed, path[:-1])
    entries = [(name if key == path[-1] else key, value) for key, value in node.items()]
    node.clear()
    node.update(entries)
    return changed


@mutation
def misspelt_key(rng: random.Random, config: Config) -> Spoilt | None:
    path = rng.choice(keys(config))
    wrong = misspelt(rng, str(path[-1]))
    return Spoilt(f"{dotted(path)} → {wrong}", dump(_renamed(config, path, wrong)), at_key((*path[:-1], wrong)))


@mutation
def misspelt_init_args(rng: random.Random, config: Config) -> Spoilt | None:
    path = (*rng.choice(classes(config)), rng.choice(["class_path", "init_args"]))
    if path[-1] not in at(config, path[:-1]):
        return None
    wrong = misspelt(rng, str(path[-1]))
    names = at_key((*path[:-1], wrong)) + (at_key((*path[:-1], "init_args")) if path[-1] == "class_path" else ())
    return Spoilt(f"{dotted(path)} → {wrong}", dump(_renamed(config, path, wrong)), names)


@mutation
def required_key_missing(rng: random.Random, config: Config) -> Spoilt | None:
    required = [
        (*path, "init_args", name)
        for path in classes(config)
        for name in at(config, path).get("init_args") or {}
        if parameter(at(config, path)["class_path"], name)[1]
    ]
    path = pick(rng, required)
    if path is None:
        return None
    return Spoilt(f"without {dotted(path)}", dump(without(config, path)), (f"needs {path[-1]}", f"and {path[-1]}"))


@mutation
def section_missing(rng: random.Random, config: Config) -> Spoilt | None:
    name = rng.choice(["model", "data"])
    return Spoilt(f"without {name}", dump(without(config, (name,))), (f"{name}: missing",))


@mutation
def empty_section(rng: random.Random, config: Config) -> Spoilt | None:
    paths = [path for path in keys(config) if isinstance(at(config, path), dict)]
    path = rng.choice([*paths, *((*p, "init_args") for p in classes(config) if "init_args" in at(config, p))])
    value = rng.choice([{}, None, "RAW"])
    names = (*at_key(path), *at_key((*path[:-1], "class_path")), f"{dotted(path)}: missing")
    text = dump(put(config, path, value), RAW="")
    return Spoilt(f"{dotted(path)}: {value}", text, names, harmless=True)


@mutation
def key_one_level_up(rng: random.Random, config: Config) -> Spoilt | None:
    path = pick(rng, [path for path in keys(config) if len(path) > 2 and path[-2] == "init_args"])
    if path is None:
        return None
    moved = (*path[:-2], path[-1])
    return Spoilt(f"{dotted(path)} up", dump(put(without(config, path), moved, at(config, path))), at_key(moved))


@mutation
def key_one_level_down(rng: random.Random, config: Config) -> Spoilt | None:
    pairs = [
        (path, (*inner, "init_args", path[-1]))
        for path in numbers(config)
        for inner in classes(config)
        if inner[:-1] == path[:-1]
        and path[-1] not in at(config, inner).get("init_args", {path[-1]: 0})
        and parameter(at(config, inner)["class_path"], path[-1]) == (None, False)
    ]
    if not pairs:
        return None
    path, moved = rng.choice(pairs)
    names = (*at_key(moved), f"needs {path[-1]}")
    return Spoilt(f"{dotted(path)} down", dump(put(without(config, path), moved, at(config, path))), names)


@mutation
def key_in_another_section(rng: random.Random, config: Config) -> Spoilt | None:
    path, section = pick(rng, numbers(config)) or ("seed_everything",), rng.choice(["trainer", "model", "data"])
    moved = (section, path[-1])
    if section not in config or section == path[0] or moved == ("data", "seed"):
        return None
    return Spoilt(f"{dotted(path)} → {dotted(moved)}", dump(put(config, moved, at(config, path))), at_key(moved))


@mutation
def key_twice(rng: random.Random, config: Config) -> Spoilt | None:
    lines = dump(config).splitlines()
    place = rng.choice([i for i, line in enumerate(lines) if line.strip() and not line.strip().startswith("- ")])
    name, indent = lines[place].strip().split(":")[0], len(lines[place]) - len(lines[place].lstrip())
    end = next(
        (i for i in range(place + 1, len(lines)) if len(lines[i]) - len(lines[i].lstrip()) <= indent), len(lines)
    )
    if end < len(lines) and lines[end].lstrip().startswith("- "):
        return None  # the entries of a list stand no deeper than its key
    lines[end:end] = lines[place:end]
    return Spoilt(f"line {place + 1} twice", "\n".join(lines) + "\n", (f"{name} ({FILE}, line {end + 1}",))


@mutation
def unknown_key_of_an_overlay(rng: random.Random, config: Config) -> Spoilt | None:
    path = rng.choice([path for path in keys(config) if int not in map(type, path)])
    wrong = (*path[:-1], misspelt(rng, str(path[-1])))
    overlay: Any = rng.choice([at(config, path), 1, None, {"a": 1}])
    for key in reversed(wrong):
        overlay = {key: overlay}
    return Spoilt(f"overlay {dotted(wrong)}", dump(config), (f"{dotted(wrong)} (overlay.yaml",), overlay=dump(overlay))


@mutation
def unknown_dict_kwargs(rng: random.Random, config: Config) -> Spoilt | None:
    path = (*rng.choice(classes(config)), "dict_kwargs")
    value = rng.choice([{"nonsense": 1}, {"nonsense": {"a": 1}}, 3, [1], "word"])
    return replaced(config, path, value, f"{dotted((*path, 'nonsense'))} ({FILE}")


@mutation
def broken_indentation(rng: random.Random, config: Config) -> Spoilt | None:
    lines = dump(config).splitlines()
    place = rng.choice([i for i, line in enumerate(lines) if line.startswith("    ")])
    damage = rng.choice(["\t", " \t", "tab inside"])
    lines[place] = lines[place].replace("  ", "\t", 1) if damage == "tab inside" else damage + lines[place].lstrip()
    return Spoilt(f"line {place + 1}: {damage!r}", "\n".join(lines) + "\n", (f"{FILE}, line {place + 1}",))


@mutation
def unclosed(rng: random.Random, config: Config) -> Spoilt | None:
    path = pick(rng, numbers(config))
    raw = rng.choice(
        ["'3", '"3', "[3", "{a: 3", "3]", "*nothing", "&", "!!python/object:os.system x", "%", "@x", "`x`"]
    )
    spoilt = replaced(config, path, "RAW", RAW=raw)
    return spoilt and Spoilt(spoilt.description, spoilt.text, (*spoilt.names, f"{FILE}, line"))


@mutation
def contains_itself(rng: random.Random, config: Config) -> Spoilt | None:
    path = rng.choice([*numbers(config), ("model",), ("trainer",)])
    raw = rng.choice(["&a [*a]", "&a {a: *a}", "&a {class_path: torch.optim.Adam, init_args: *a}"])
    return replaced(config, path, "RAW", f"{FILE}, line", RAW=raw)


@mutation
def nested_deep(rng: random.Random, config: Config) -> Spoilt | None:
    path, depth = rng.choice([*numbers(config), ("model",), ("trainer",)]), rng.choice([100, 500, 3000])
    raw = rng.choice(["[" * depth + "]" * depth, "{a: " * depth + "1" + "}" * depth])
    return replaced(config, path, "RAW", f"{FILE}, line", *at_key((*path, "a")), RAW=raw)


@mutation
def billion_laughs(rng: random.Random, config: Config) -> Spoilt | None:
    kind = rng.choice(["[{}]", "{{{}}}"])
    lines = ["a0: &a0 [lol, lol]"]
    for i in range(1, 30):
        entries = [f"*a{i - 1}"] * 9 if kind == "[{}]" else [f"k{j}: *a{i - 1}" for j in range(9)]
        lines.append(f"a{i}: &a{i} " + kind.format(", ".join(entries)))
    if rng.random() < 0.5:
        return Spoilt(
            "billion laughs beside", "\n".join(lines) + "\n" + dump(config), ("a0 (", f"{FILE}, line", f"{FILE}:")
        )
    path = pick(rng, numbers(config))
    inside = "{" + ", ".join(lines) + "}"
    return replaced(config, path, "RAW", f"{FILE}, line", f"{FILE}:", RAW=inside)


@mutation
def huge(rng: random.Random, config: Config) -> Spoilt | None:
    comment = rng.random() < 0.5
    text = "# " + "x" * 20_000_000 + "\n" if comment else f"nonsense: '{'x' * 20_000_000}'\n"
    return Spoilt(
        "20 MB comment" if comment else "20 MB value", text + dump(config), ("nonsense (", f"{FILE}:"), harmless=comment
    )


@mutation
def strange_path(rng: random.Random, config: Config) -> Spoilt | None:
    key = rng.choice(["run_dir", "ckpt_path", "config"])
    value = rng.choice([_LONG, "a/" * 2500 + "b", "a\0b", "\0", "hpc"])
    if value == "hpc" and key != "ckpt_path":
        value = _LONG
    if key == "config" or rng.random() < 0.5:
        return Spoilt(f"--{key} {value[:9]!r}", dump(config), (f"--{key}", f"{key}:"), (f"--{key}", value))
    return Spoilt(f"{key}: {value[:9]!r}", dump({key: value, **config}), (f"{key} (", f"{key}:"))


@mutation
def bytes_that_are_no_text(rng: random.Random, config: Config) -> Spoilt | None:
    text, raw = dump(config), rng.choice(["\0", "\x07", "\x1b[31m", "\udcff", "\udce9"])
    place = rng.randrange(len(text))
    return Spoilt(f"{raw!r} at {place}", text[:place] + raw + text[place:], (f"{FILE}:", f"{FILE}, line"))
