"""Executors: processes of this machine, Slurm jobs as local processes, and a real Ray cluster of two nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies.claims import holder
from lightning_nlf.studies.executors import Executor, executor
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
def cluster(study: Study) -> Iterator[Any]:
    """A Ray cluster of two nodes with one core each, on this machine. The test's study is its driver."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    import ray
    from ray.cluster_utils import Cluster

    before = {process.pid for process in psutil.process_iter()}
    nodes = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**nodes, "node_ip_address": "127.0.0.1"})
    try:
        cluster.add_node(**{**nodes, "node_ip_address": "127.0.0.1"})
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        left = [process for process in psutil.process_iter() if process.pid not in before and _is_rays(process)]
        for process in left:
            process.kill()


def _is_rays(process: psutil.Process) -> bool:
    try:
        return any("ray" in word for word in process.cmdline()[:3]) and process.username() == psutil.Process().username()
    except psutil.Error:
        return False


@pytest.mark.slow
def test_two_nodes_of_a_ray_cluster(study: Study, until: Callable, cluster: Any) -> None:
    """Each node gets a run. A worker is killed, then a whole node; the other node finishes both runs."""
    import ray

    ray_: Executor = executor("ray", options={"address": cluster.address})
    assert ray_.slots == 2
    folders = [run.folder(study) for run in RUNS]
    handles = [ray_.submit(study, run, {}) for run in RUNS]
    until(lambda: all(len(points(folder, study.metric)) >= 2 for folder in folders))
    nodes = [worker(folder).parent().ppid() for folder in folders]  # type: ignore[union-attr]
    assert nodes[0] != nodes[1]

    worker(folders[0]).kill()
    until(lambda: handles[0].poll() is not None)
    assert handles[0].poll() == -9 and load(folders[0]) is None
    handles[0] = ray_.submit(study, RUNS[0], {})

    other = cluster.list_all_nodes()[1]
    cluster.remove_node(other, allow_graceful=False)
    lost = int(other_of(folders, study) is None)
    assert ray.is_initialized() and lost in (0, 1)
    for _ in range(3):
        for index, handle in enumerate(handles):
            until(lambda handle=handle: handle.poll() is not None)
            if load(folders[index]) is None:
                handles[index] = ray_.submit(study, RUNS[index], {})
    for run in RUNS:
        check(study, run, times=2)
