"""Damage inputs of every kind at random, and count how the program answers.

    python tests/mutants                                     1,000 mutants of seed 0
    python tests/mutants --kinds yaml --seeds 1 2 3 --count 100
    python tests/mutants --show traceback hang               with their messages

The exit code is 1 if an input caused a traceback or a hang, or was accepted by mistake.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:1] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from mutants.verdicts import Verdict, judge  # noqa: E402  # the folder must be on the path first

KINDS = {"yaml": 400, "feedback": 300, "folder": 100, "journal": 100, "checkpoint": 150}  # mutants of one seed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--count", type=int, help="mutants of each kind and seed")
    parser.add_argument("--show", nargs="*", default=[], choices=[str(verdict) for verdict in Verdict])
    options = parser.parse_args()
    print(f"{'kind':<12}{'mutation':<36}" + "".join(f"{verdict:>11}" for verdict in ("tried", *Verdict)))
    bad = 0
    for kind in options.kinds:
        counts: dict[str, Counter[str]] = {}
        begin = time.monotonic()
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                for mutant in importlib.import_module(f"mutants.{kind}").mutants(
                    seed, options.count or KINDS[kind], Path(folder)
                ):
                    answer = judge(mutant)
                    counts.setdefault(mutant.mutation, Counter())[answer.verdict] += 1
                    if answer.verdict in options.show:
                        print(f"--- {answer.verdict}: {mutant.description}\n{answer.message}")
        total: Counter[str] = Counter()
        for mutation, count in [*sorted(counts.items()), ("all", total)]:
            total.update(count if mutation != "all" else {})
            print(
                f"{kind:<12}{mutation:<36}" + "".join(f"{n:>11}" for n in (count.total(), *(count[v] for v in Verdict)))
            )
        print(f"{kind:<12}{time.monotonic() - begin:.0f} s", flush=True)
        bad += sum(total[verdict] for verdict in (Verdict.TRACEBACK, Verdict.HANG, Verdict.SILENT))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
