"""`python -m lightning_nlf`: the help is answered at once, everything else by `lightning_nlf.cli`."""

from __future__ import annotations

import os
import sys

from lightning_nlf.cli.errors import OUT_OF_MEMORY, memory_is_short
from lightning_nlf.cli.memory import keep_freed
from lightning_nlf.cli.startup import quick_imports

HELP = """\
usage: python -m lightning_nlf {fit,validate,test,predict,describe} --config YAML [--config OVERLAY] [--KEY VALUE]
       python -m lightning_nlf chat --run_dir RUN

Trains controllers and language models from what a teacher says.

  fit        train, and validate now and then
  validate   play the evaluation episodes once
  test       the same on the episodes kept for the end
  predict    write down what the policy does
  describe   print the loss: its terms, what each is a mean over, who fills which phase
  chat       talk with the policy of a run of language; chat --help says how

A yaml of conf/ is one experiment; every key of it is a flag as well. A run lives in outputs/<yaml>-seed<seed>.

  python -m lightning_nlf fit --config conf/injection.yaml --seed_everything 1
  python -m lightning_nlf fit --config conf/injection.yaml --ckpt_path last     go on, or begin
  python -m lightning_nlf test --config conf/injection.yaml --ckpt_path best

More:  fit --help  all flags,  fit --model.help CLASS  those of a class,  fit --config YAML --print_config  all values.
LIGHTNING_NLF_TRACEBACK=1 shows where an error comes from.
"""


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(HELP, end="")
        return
    # Idle OpenMP threads would spin beside MuJoCo's: on two busy cores a fit took ten times as long. Read at import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed()
    try:
        try:
            with quick_imports():
                from lightning_nlf.cli.command_line import main as command_line  # Lightning, which takes seconds
        except (MemoryError, ImportError, OSError) as error:
            if not memory_is_short(error):
                raise
            sys.exit(f"error: {OUT_OF_MEMORY}")
        command_line()
    except KeyboardInterrupt:  # before or after a stage: Lightning takes those within
        sys.exit(130)


if __name__ == "__main__":
    main()
