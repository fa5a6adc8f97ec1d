"""Two machines: DDP over gloo, started by torchrun and as by srun. Each machine is a network namespace of its own.

Where namespaces are not permitted, two loopback addresses stand for the machines.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.cli.run_folder import require_run_dir
from lightning_nlf.tracking.journal import last_lifecycle
from tests.conftest import free_port
from tests.test_faults import ROOT, RUN, iterations

SOON = 60.0  # seconds in which a run must end after the death of a rank
FIT = ["-m", "lightning_nlf", "fit", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "MLFLOW_TRACKING_URI")
VARIABLES += ("LIGHTNING_NLF_RUN_DIR",)  # an earlier test may have run a fit in this process


class Namespaces:
    """Two network namespaces, joined by a virtual cable. Each machine has a host name of its own."""

    addresses = ("10.98.0.1", "10.98.0.2")

    def __init__(self) -> None:
        names = self.names = [f"nlf{os.getpid()}{letter}" for letter in "ab"]
        self.hosts = ("node-a", "node-b")
        commands = [f"netns add {name}" for name in names]
        commands += [f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}"]
        for name, address in zip(names, self.addresses, strict=True):
            commands += [f"-n {name} addr add {address}/24 dev cable"]
            commands += [f"-n {name} link set {device} up" for device in ("lo", "cable")]
        try:
            for command in commands:
                subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
            subprocess.run(self.command(0, ["true"]), check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            pytest.skip(f"network namespaces: {getattr(error, 'stderr', '') or error}")

    def command(self, node, words):
        shell = ["unshare", "--uts", "sh", "-c", f'hostname {self.hosts[node]}; exec "$@"', "sh", *words]
        return ["ip", "netns", "exec", self.names[node], *shell]

    interface = "cable"

    def close(self):
        if shutil.which("ip"):
            for name in self.names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Loopback:
    """Two addresses of one machine. The machines differ in their number, and have the same host name."""

    addresses, interface, hosts = ("127.0.0.2", "127.0.0.3"), "lo", (os.uname().nodename,) * 2

    def command(self, node, words):
        return list(words)

    def close(self):
        pass


class Nodes:
    """Runs a `fit` of two nodes with one rank each, and the same `fit` on one node with two ranks."""

    def __init__(self, machines, folder: Path) -> None:
        self.machines, self.folder, self.started = machines, folder, []

    def start(self, launcher, run, *flags):
        """Start both nodes. `launcher` is `torchrun` or `srun`."""
        words = [*FIT, "--trainer.devices", "1", "--trainer.num_nodes", "2", "--run_dir", run, *flags]
        variables, ranks = {"torchrun": self._torchrun, "srun": self._srun}[launcher](words)
        nodes = [self._open(self.machines.command(i, ranks[i]), variables[i]) for i in (0, 1)]
        self.started += nodes
        return nodes

    def _torchrun(self, words):
        where = ["--master_addr", self.machines.addresses[0], "--master_port", str(free_port())]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *where]
        return [{}, {}], [[*torchrun, "--node_rank", str(i), *words] for i in (0, 1)]

    def _srun(self, words):
        """The variables that srun sets and that Lightning reads."""
        job = {"JOB_ID": "1204711", "JOB_NAME": "fit", "NNODES": "2", "NTASKS": "2", "NTASKS_PER_NODE": "1"}
        job |= {"NODELIST": ",".join(self.machines.addresses), "LOCALID": "0"}
        tasks = [job | {"NODEID": str(i), "PROCID": str(i)} for i in (0, 1)]
        variables = [{f"SLURM_{name}": value for name, value in task.items()} for task in tasks]
        return variables, [[sys.executable, *words]] * 2

    def single(self, run, *flags):
        words = [sys.executable, *FIT, "--trainer.devices", "2", "--run_dir", run, *flags]
        self.started.append(process := self._open(words, {"MASTER_PORT": str(free_port())}))
        return [process]

    def _open(self, words, variables):
        environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", **variables}
        environ |= {"GLOO_SOCKET_IFNAME": self.machines.interface} if "MASTER_PORT" not in variables else {}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(words, cwd=self.folder, env=environ, start_new_session=True, **pipes)

    def clear(self):
        for process in self.started:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.kill()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="module", params=[Namespaces, Loopback])
def machines(request):
    if request.param is Loopback:
        try:
            Namespaces().close()
            pytest.skip("loopback addresses: not needed, because network namespaces are permitted")
        except pytest.skip.Exception as reason:
            if "not needed" in str(reason):
                raise
    pair = request.param()
    yield pair
    pair.close()


@pytest.fixture
def nodes(machines, tmp_path):
    pair = Nodes(machines, tmp_path)
    yield pair
    pair.clear()


def ended(processes, seconds=120.0):
    """The exit codes of the processes, and what they printed."""
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def errors(outputs):
    return [line for output in outputs for line in output.splitlines() if line.startswith("error:")]


def metrics(folder):
    """All metrics of a run's journal, without speeds and times of this machine."""
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    values = [row["values"] for row in rows if row["kind"] == "metrics"]
    losses = [{name: x for name, x in row.items() if name.split("/")[0] in ("train", "val")} for row in values]
    return [row for row in losses if row]


@pytest.mark.slow
def test_two_nodes_learn_what_two_ranks_of_one_node_learn(nodes):
    flags = ["--config", str(ROOT / "conf" / "injection.yaml"), "--trainer.max_epochs", "2"]
    flags += ["--trainer.check_val_every_n_epoch", "2", "--data.horizon", "100", "--data.evaluation_episodes", "2"]
    weights = {}
    for name, begin in {"one": nodes.single, "torchrun": nodes.start, "srun": nodes.start}.items():
        codes, outputs = ended(begin(*([] if name == "one" else [name]), name, *flags))
        assert set(codes) == {0}, outputs
        assert sum("Finished: 2 iterations" in output for output in outputs) == 1, outputs
        file = nodes.folder / name / "checkpoints" / "last.ckpt"
        weights[name] = torch.load(file, weights_only=True)["state_dict"]
    for name in ("torchrun", "srun"):
        torch.testing.assert_close(weights[name], weights["one"], atol=1e-6, rtol=0)
        assert metrics(nodes.folder / name) == metrics(nodes.folder / "one") != []


@pytest.mark.slow
def test_a_rank_that_dies_on_one_node_ends_the_other_node(nodes):
    """kill -9 of rank 1 under srun, and of rank 0 under torchrun, of the same run, resumed."""
    (nodes.folder / "run.yaml").write_text(RUN.format(epochs=100_000))
    folder = nodes.folder / "run"
    for launcher, dead in (("srun", 1), ("torchrun", 0)):
        before = iterations(folder)
        pair = nodes.start(launcher, "run", "--config", "run.yaml", "--ckpt_path", "last")
        deadline = time.monotonic() + 100
        while iterations(folder) < before + 2:  # from the second time on, this shows that the run was resumed
            assert pair[0].poll() is None and time.monotonic() < deadline, ended(pair, 1)
            time.sleep(0.05)
        process = psutil.Process(pair[dead].pid)
        rank = process if launcher == "srun" else process.children()[0]
        rank.kill()
        began = time.monotonic()
        codes, outputs = ended(pair, SOON)
        assert time.monotonic() - began < SOON
        assert codes[1 - dead] == 1, outputs
        (line,) = errors(outputs)
        host = nodes.machines.hosts[dead]
        assert f"rank {dead} (process {rank.pid} on node {dead}, {host}) died or was cut off" in line
        assert "last.ckpt" in line and line in outputs[1 - dead]
        assert launcher == "torchrun" or "Traceback" not in outputs[1 - dead]  # torchrun prints a traceback of itself
        if dead == 1:  # rank 0 writes the journal
            assert last_lifecycle(folder / "journal.jsonl").get("status") == "FAILED"


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "1", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}],
    ids=["torchrun", "srun"],
)
def test_ranks_started_elsewhere_need_a_folder_that_all_of_them_know(variables, monkeypatch, tmp_path):
    monkeypatch.delenv("LIGHTNING_NLF_RUN_DIR", raising=False)
    require_run_dir(None, None, 1)  # one process
    with monkeypatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        with pytest.raises(ConfigurationError, match="run_dir: missing.*--run_dir outputs/"):
            require_run_dir(None, "last", 1)
        require_run_dir("outputs/a", None, 1)
        (tmp_path / "journal.jsonl").touch()
        require_run_dir(None, str(tmp_path / "checkpoints" / "last.ckpt"), 1)  # the checkpoint is in a run folder
    with pytest.raises(ConfigurationError, match="run_dir: missing"):
        require_run_dir(None, None, 2)  # started by hand, on two machines
