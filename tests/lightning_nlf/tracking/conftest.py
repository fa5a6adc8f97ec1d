"""Fixtures of the tracking tests: a real MLflow server that can be killed, and a wait with a deadline."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.mlflow_server import Server, wait_for


@pytest.fixture(name="wait_for")
def wait_for_fixture() -> Callable[[Callable[[], object], float], None]:
    return wait_for


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def server(one_server: Server) -> Server:
    """A running server that the tests share. A test may kill it."""
    if not one_server.answers():
        one_server.kill()
        one_server.start()
    return one_server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
