"""Damaged checkpoints: flipped bytes, cuts, missing and wrong parts, foreign names, and other files."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mutants.verdicts import Mutant, OtherContent

from data_modules.pendulum import PendulumDataModule
from lightning_nlf.checkpoint_content import check_training
from lightning_nlf.checkpoint_io import RunCheckpointIO
from lightning_nlf.cli.command_line import main
from lightning_nlf.modules import ObjectiveModule

ROOT = Path(__file__).parents[2]
WHOLE = ROOT / "tests" / "lightning_nlf" / "checkpoints" / "injection.ckpt"
COMMAND = [
    *("--config", str(ROOT / "conf" / "injection.yaml")),
    *("--config", str(ROOT / "conf" / "overlays" / "debug.yaml")),
]
COMMAND += ["--model.policy.hidden", "[2]", "--data.label_buffer.rows", "4", "--trainer.max_epochs", "1"]
COMMAND += ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--data.evaluation_episodes", "1"]
NONSENSE: tuple[Any, ...] = (None, 3, -1.5, "x", [], [1, "a"], {}, {"a": 1}, True)
NAMES = ("os.system", "subprocess.Popen", "stranger.Thing", "builtins.eval", "torch.hub.load", "no_path", "a..b", "")
PARTS = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops")
TRAINING = ("callbacks", "optimizer_states", "lr_schedulers", "PendulumDataModule")


def mutants(seed: int, count: int, folder: Path) -> Iterator[Mutant]:
    """`count` damaged checkpoints of all sorts in turn. Writes files to `folder`."""
    draw = random.Random(seed)
    content = torch.load(WHOLE, weights_only=True)
    for number, (sort, spoil) in zip(range(count), itertools.cycle(SORTS.items()), strict=False):
        path = folder / f"{number}.ckpt"
        description, names, stage = spoil(draw, path, copy.deepcopy(content))
        # Padding and dates are not content, and some other values are valid too.
        may_be_accepted = sort in ("flipped bytes", "bytes after the end", "argument of another type")
        yield Mutant(
            "checkpoint",
            sort,
            f"{path.name}: {description}",
            names,
            _attempt(path, stage, folder),
            (ValueError, OSError),
            may_be_accepted,
        )


Spoil = Callable[[random.Random, Path, dict[str, Any]], tuple[str, tuple[str, ...], str | None]]


def _attempt(path: Path, stage: str | None, folder: Path) -> Callable[[], int]:
    def load() -> int:
        module = ObjectiveModule.load_from_checkpoint(path)
        whole = ObjectiveModule.load_from_checkpoint(WHOLE)
        if any(not torch.equal(x, whole.state_dict()[name]) for name, x in module.state_dict().items()):
            raise OtherContent("the weights differ from the saved ones")
        return 0

    def run() -> int:
        assert stage is not None
        main([stage, *COMMAND, "--run_dir", str(folder / f"run-{path.stem}"), "--ckpt_path", str(path)])
        return 0

    def read() -> int:
        check_training(RunCheckpointIO().load_checkpoint(path), PendulumDataModule(episodes=2))
        return 0

    return {None: load, "read": read}.get(stage, run)


def _seldom(draw: random.Random, stage: str, cheap: str | None) -> str | None:
    """Choose the command line in one of six cases only, because it takes a second or two."""
    return stage if draw.randrange(6) == 0 else cheap


def _flipped(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], None]:
    data = bytearray(WHOLE.read_bytes())
    places = [draw.randrange(len(data)) for _ in range(draw.choice((1, 1, 2, 8)))]
    for place in places:
        data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return f"a bit flipped at {places}", (path.name,), None


def _cut(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], None]:
    data = WHOLE.read_bytes()
    left = draw.randrange(len(data))
    path.write_bytes(data[:left])
    return f"cut to {left} bytes", (path.name,), None


def _longer(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], None]:
    path.write_bytes(WHOLE.read_bytes() + draw.randbytes(draw.randrange(1, 200)))
    return "bytes after the end", (path.name,), None


def _missing(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], str | None]:
    key = draw.choice(PARTS + TRAINING)
    del content[key]
    torch.save(content, path)
    return f"without {key}", (key,), _seldom(draw, "fit" if key in TRAINING else "validate", "read")


def _part(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], str | None]:
    key, value = draw.choice(PARTS + TRAINING), draw.choice((None, 2.5, ["a"], "x", 3 + 1j))
    content[key] = [] if isinstance(content[key], str) else value
    torch.save(content, path)
    return (
        f"{key}: {content[key]!r}",
        ("ckpt_path", key),
        _seldom(draw, "fit" if key in TRAINING else "validate", "read"),
    )


def _weight(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], None]:
    name, value = draw.choice(sorted(content["state_dict"])), draw.choice(NONSENSE)
    content["state_dict"][name] = value
    torch.save(content, path)
    return f"state_dict.{name}: {value!r}", (name, "state_dict"), None


def _shape(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], str | None]:
    state = content["state_dict"]
    first, second = draw.choice([(a, b) for a in state for b in state if state[a].shape != state[b].shape])
    state[first], state[second] = state[second], state[first]
    torch.save(content, path)
    return f"{first} and {second} swapped", (first, second), _seldom(draw, "validate", None)


def _missing_weight(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], None]:
    name = draw.choice(sorted(content["state_dict"]))
    x = content["state_dict"].pop(name)
    changed = draw.choice((name, name + "x"))
    content["state_dict"] |= {changed: x} if changed != name else {}
    torch.save(content, path)
    return f"state_dict without {name}", (name,), None


def _argument(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], None]:
    arguments = draw.choice((content["hyper_parameters"], content["hyper_parameters"]["policy"]["init_args"]))
    key, value = draw.choice([name for name in sorted(arguments) if name != "_instantiator"]), draw.choice(NONSENSE)
    arguments[key] = value
    torch.save(content, path)
    return f"{key}: {value!r}", (key, path.name), None


def _foreign(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], None]:
    place, name = draw.choice(("policy", "imitation_weight", "_class_path")), draw.choice(NAMES)
    content["hyper_parameters"][place] = name if place == "_class_path" else {"class_path": name, "init_args": {}}
    torch.save(content, path)
    return f"{place} is of {name}", (name or path.name, place), None


def _plain(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], str | None]:
    value = draw.choice(({}, {"weights": 1}, {"state_dict": {}}, [1], 3, None, "text", torch.zeros(3), {1: 2}))
    torch.save(value, path)
    return f"holds {value!r}", (path.name,), _seldom(draw, "fit", None)


def _file(draw: random.Random, path: Path, content: dict[str, Any]) -> tuple[str, tuple[str, ...], str | None]:
    sort = draw.choice(("empty", "text", "noise", "folder", "nothing"))
    if sort == "folder":
        path.mkdir()
    elif sort != "nothing":
        path.write_bytes({"empty": b"", "text": b"seed: 1\n" * 9, "noise": draw.randbytes(300)}[sort])
    return sort, (path.name,), _seldom(draw, "validate", None)


SORTS: dict[str, Spoil] = {
    "flipped bytes": _flipped,
    "cut": _cut,
    "bytes after the end": _longer,
    "part missing": _missing,
    "part of another type": _part,
    "weight that is not a tensor": _weight,
    "shapes swapped": _shape,
    "weight missing or renamed": _missing_weight,
    "argument of another type": _argument,
    "foreign name": _foreign,
    "no checkpoint": _plain,
    "another file": _file,
}
