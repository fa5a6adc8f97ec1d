"""One thread per test: two workers share two cores, and results do not depend on the splitting of sums."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# A shell starts background jobs with Ctrl-C ignored, and their child processes inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SCRIPT = """
import runpy, sys

runpy.run_path(sys.argv[1])["in_two_processes"](*sys.argv[2:])
"""


@pytest.fixture(scope="session")
def on_two_processes(tmp_path_factory):
    """Function that runs `in_two_processes(*arguments, folder)` of a file on two ranks of Lightning's DDP.

    Each rank writes `folder/rank{0,1}.pt`; the function returns the contents of both files.
    """

    def run(file, *arguments):
        folder = tmp_path_factory.mktemp("ranks")
        script = folder / "script.py"
        script.write_text(SCRIPT)
        launcher_variables = {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK", "MASTER_ADDR"}
        environment = {name: value for name, value in os.environ.items() if name not in launcher_variables}
        root = str(Path(__file__).parents[1])
        environment |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        process = subprocess.Popen(
            [sys.executable, str(script), file, *arguments, str(folder)],
            env=environment,
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that the second process, a child of the first, can be killed with it
        )
        try:
            output, _ = process.communicate(timeout=180)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert process.returncode == 0, output
        return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]

    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
