"""Executors: processes of this machine, Slurm jobs as local processes, and a real Ray cluster of two nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies.claims import holder
from lightning_nlf.studies.executors import executor
from lightning_nlf.studies.executors.local import cores
from lightning_nlf.studies.runs import Run, load, points
from lightning_nlf.studies.spec import Study
from lightning_nlf.tracking.journal import JOURNAL, read_records

RUNS = [Run("tiny", "report", {}, seed) for seed in (1, 2)]


def starts(folder: Path) -> int:
    return sum(record["kind"] == "start" for record, _ in read_records(folder / JOURNAL))


def worker(folder: Path) -> psutil.Process:
    content = holder(folder)
    assert content is not None
    return psutil.Process(content["pid"])


def check(study: Study, run: Run, times: int) -> None:
    """Check a run that was started `times` times."""
    result = load(run.folder(study))
    assert result is not None and not result.failure
    assert [point.counters["iteration"] for point in result.points] == list(range(2, 42, 2))
    assert starts(run.folder(study)) == times


def test_unknown_executors_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="executor: got 'cloud'; choose one of local, slurm, ray"):
        executor("cloud")


def test_one_run_per_core_by_default() -> None:
    assert executor("local").slots == cores()
    assert executor("local", jobs=7).slots == 7


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [("local", {}), ("slurm", {"cluster": "local"})])
def test_a_killed_worker_is_seen_and_its_run_goes_on(
    study: Study, until: Callable, name: str, options: dict[str, Any]
) -> None:
    if name == "slurm":
        pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    executor_, folder = executor(name, 1, options), RUNS[0].folder(study)
    handle = executor_.submit(study, RUNS[0], {"arm": "tiny"})
    until(lambda: len(points(folder, study.metric)) >= 3)
    assert handle.poll() is None
    process = worker(folder)
    process.kill()
    until(lambda: handle.poll() is not None)
    assert handle.poll() == -9 and load(folder) is None
    handle = executor_.submit(study, RUNS[0], {"arm": "tiny"})
    until(lambda: handle.poll() is not None)
    assert handle.poll() == 0
    check(study, RUNS[0], times=2)


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [("local", {}), ("slurm", {"cluster": "local"})])
def test_a_run_that_is_stopped_leaves_no_process(
    study: Study, until: Callable, name: str, options: dict[str, Any]
) -> None:
    if name == "slurm":
        pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    handle, folder = executor(name, 1, options).submit(study, RUNS[0], {}), RUNS[0].folder(study)
    until(lambda: holder(folder) and worker(folder).children())
    processes = [worker(folder), *worker(folder).children(recursive=True)]
    handle.kill()
    until(lambda: handle.poll() is not None)
    until(lambda: not any(process.is_running() for process in processes))
    assert holder(folder) is None and load(folder) is None


@pytest.fixture
def cluster(study: Study, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, each with an address and one core, for the study."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    # Not 127.0.0.1, which Ray replaces by the address of a network card.
    cluster = Cluster(initialize_head=True, head_node_args={**node, "node_ip_address": "127.0.0.2"})
    processes: list[psutil.Process] = []
    try:
        cluster.add_node(**node, node_ip_address="127.0.0.3")
        yield cluster
    finally:
        processes = psutil.Process().children(recursive=True)
        ray.shutdown()
        cluster.shutdown()
        _, left = psutil.wait_procs(processes, timeout=30)
        for process in left:
            process.kill()
    assert not left


def raylet(node: Any) -> int:
    """Process id of the daemon of a node."""
    return int(node.all_processes["raylet"][0].process.pid)


@pytest.mark.slow
def test_a_ray_cluster_loses_a_worker_and_a_node(study: Study, until: Callable, cluster: Any) -> None:
    """Each of two nodes gets a run. A worker is killed on the first, and the second is killed as a whole."""
    ray_ = executor("ray", options={"address": cluster.address})
    assert ray_.slots == 2
    handles = {run.seed: ray_.submit(study, run, {}) for run in RUNS}
    until(lambda: all(len(points(run.folder(study), study.metric)) >= 2 for run in RUNS))
    nodes = {worker(run.folder(study)).parent().ppid(): run for run in RUNS}  # type: ignore[union-attr]
    stays, dies = cluster.head_node, next(iter(cluster.worker_nodes))
    first, second = nodes[raylet(stays)], nodes[raylet(dies)]
    worker(first.folder(study)).kill()
    cluster.remove_node(dies, allow_graceful=False)
    until(lambda: all(handle.poll() is not None for handle in handles.values()))
    assert handles[first.seed].poll() == -9
    assert handles[second.seed].poll() in (-9, 1)  # 1 if Ray's own process died before it saw that the worker had

    def all_have_results() -> bool:
        """Whether all runs have a result. A run that was left is submitted again, as a study does."""
        for run in RUNS:
            if handles[run.seed].poll() is not None and load(run.folder(study)) is None:
                handles[run.seed] = ray_.submit(study, run, {})
        return all(load(run.folder(study)) is not None for run in RUNS)

    until(all_have_results, seconds=600)
    for run in RUNS:
        check(study, run, times=2)
