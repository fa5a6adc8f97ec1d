"""generation_config.json: BOS, EOS, padding and stop tokens of a model in the Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_nlf.language.hf_folder import CONFIG, GENERATION, read_json

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def generation_in(folder: Path) -> dict[str, Any]:
    """Read generation_config.json. If it is missing, return the BOS, EOS and padding ids of config.json.

    Raises:
        ValueError: the file is not a JSON object, or an id is invalid.
    """
    path = folder / (GENERATION if (folder / GENERATION).exists() else CONFIG)
    content = read_json(path)
    for name in TOKENS:
        value = content.get(name)
        several = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if value is not None and not all(isinstance(x, int) and not isinstance(x, bool) for x in several):
            raise ValueError(f"weights: {path}: {name}: got {value!r}, must be a token id")
    if path.name == GENERATION:
        return content
    return {name: content[name] for name in TOKENS if content.get(name) is not None}


def write_generation(folder: Path, generation: dict[str, Any]) -> None:
    """Write generation_config.json, and BOS, EOS and padding ids in config.json.

    Write nothing if there are no such ids.
    """
    if not any(generation.get(name) is not None for name in TOKENS):
        return
    tokens = {name: generation[name] for name in TOKENS if name in generation}
    _write(folder / CONFIG, read_json(folder / CONFIG) | tokens)
    made_of_config = ("_from_model_config",)  # marks a file that was derived from config.json
    _write(folder / GENERATION, {key: value for key, value in generation.items() if key not in made_of_config})


def write_ends(folder: Path, stops: Sequence[int], pad: int | None) -> None:
    """Write the ids at which replies stop, so that `generate` of transformers stops at the same ids.

    All other settings of the folder are kept.
    Args: stops: token ids that end a reply; the first one is the end of the sequence; pad: id of the padding after the
        end.
    """
    ends = {"eos_token_id": stops[0] if len(stops) == 1 else list(stops)}
    write_generation(folder, generation_in(folder) | ends | ({} if pad is None else {"pad_token_id": pad}))
    _write(folder / CONFIG, read_json(folder / CONFIG) | {"eos_token_id": stops[0]})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
