"""150 invalid inputs of every kind, in this process: each is refused with one line that names the error.

`python tests/mutants` tries a thousand and counts.
"""

import importlib
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # like `python tests/mutants`

from mutants.verdicts import Verdict, judge  # noqa: E402

SEED = 7
COUNTS = {"yaml": 60, "feedback": 40, "folder": 15, "journal": 15, "checkpoint": 20}
RIGHT = {Verdict.CLEAR, Verdict.HARMLESS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_a_spoilt_input_is_refused_in_one_line(kind, tmp_path):
    begin, answers = time.monotonic(), []
    for mutant in importlib.import_module(f"mutants.{kind}").mutants(SEED, COUNTS[kind], tmp_path):
        answers.append((mutant, judge(mutant)))
    assert len(answers) == COUNTS[kind]
    wrong = [f"{answer.verdict}: {mutant.description}\n{answer.message}" for mutant, answer in answers]
    wrong = [text for text, (_, answer) in zip(wrong, answers, strict=True) if answer.verdict not in RIGHT]
    assert not wrong, f"{len(wrong)} of {len(answers)} in {time.monotonic() - begin:.0f} s\n" + "\n".join(wrong)
