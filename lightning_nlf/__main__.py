"""Entry point of `python -m lightning_nlf`: prints the help, and passes every other command to `lightning_nlf.cli`."""

from __future__ import annotations

import os
import sys

from lightning_nlf.cli.errors import OUT_OF_MEMORY, memory_is_short
from lightning_nlf.cli.memory import keep_freed_memory
from lightning_nlf.cli.startup import quick_imports

HELP = """\
usage: python -m lightning_nlf {fit,validate,test,predict,describe} --config YAML [--config OVERLAY] [--KEY VALUE]
       python -m lightning_nlf study FILE
       python -m lightning_nlf chat --run_dir RUN

Trains controllers and language models from the feedback of a teacher.

  fit        train, and validate at intervals
  validate   evaluate once on the validation episodes or prompts
  test       evaluate once on the test episodes or prompts
  predict    write the policy's replies or episodes to a file
  describe   print the loss: its terms, the mask that each is averaged over, and the class behind each phase
  study      compare yamls over seeds: tune them, run fresh seeds, report intervals (see study --help)
  chat       chat with the policy of a language run (see chat --help)

Each yaml in conf/ is one experiment, and each of its keys is also a flag.
A run is saved in outputs/<yaml>-seed<seed>.

  python -m lightning_nlf fit --config conf/injection.yaml --seed_everything 1
  python -m lightning_nlf fit --config conf/injection.yaml --ckpt_path last     resume, or start
  python -m lightning_nlf test --config conf/injection.yaml --ckpt_path best

More help:
  fit --help                         all flags
  fit --model.help CLASS             the flags of one class
  fit --config YAML --print_config   all values, defaults included

Set LIGHTNING_NLF_TRACEBACK=1 to see where an error comes from.
"""


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(HELP, end="")
        return
    if sys.argv[1:2] == ["study"]:
        from lightning_nlf.studies.command import main as study

        study(sys.argv[2:])
        return
    # Idle OpenMP threads would compete with MuJoCo's: without this, a fit took ten times as long on two busy cores.
    # OpenMP reads the environment variable at import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    try:
        try:
            with quick_imports():
                from lightning_nlf.cli.command_line import main as command_line  # imports Lightning: seconds
        except (MemoryError, ImportError, OSError) as error:
            if not memory_is_short(error):
                raise
            sys.exit(f"error: {OUT_OF_MEMORY}")
        command_line()
    except KeyboardInterrupt:  # Lightning handles Ctrl-C only during a stage
        sys.exit(130)


if __name__ == "__main__":
    main()
