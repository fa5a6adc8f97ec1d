"""A small instruct model that really speaks, for slow tests: SmolLM2-135M-Instruct as a Hugging Face folder.

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
    """The folder; made once in an environment, in a process of its own. Skips where it cannot be had, and says why."""
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "smollm2.py"], capture_output=True, text=True)
    if done.returncode and done.stderr.startswith("error: "):
        pytest.skip(done.stderr.strip().removeprefix("error: "))
    assert not done.returncode, done.stderr
    return Path(done.stdout.splitlines()[-1])
