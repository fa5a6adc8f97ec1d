"""Fixture of a real instruct model for slow tests: SmolLM2-135M-Instruct as a Hugging Face folder.

from tests.real_model import smollm2  # noqa: F401

@pytest.mark.slow
def test_it(smollm2): ...
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the model, created once in a separate process. Skips the test with a reason if that fails."""
    process = subprocess.run([sys.executable, ROOT / "benchmarks" / "smollm2.py"], capture_output=True, text=True)
    if process.returncode and process.stderr.startswith("error: "):
        pytest.skip(process.stderr.strip().removeprefix("error: "))
    assert not process.returncode, process.stderr
    return Path(process.stdout.splitlines()[-1])
