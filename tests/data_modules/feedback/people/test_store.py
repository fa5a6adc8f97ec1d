from pathlib import Path
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient

from data_modules.feedback.people.store import _data_base, opened


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////data/a%2Fb%3F/mlflow.db?timeout=3", Path("/data/a/b?/mlflow.db")),
        ("sqlite+pysqlite:////data/a b/mlflow.db", Path("/data/a b/mlflow.db")),
        ("sqlite://", None),
        ("http://server/mlflow.db", None),
    ],
)
def test_file_of_a_uri_is_the_one_that_mlflow_opens(uri, path):
    assert _data_base(uri) == path


@pytest.mark.slow
def test_experiment_below_an_odd_path_has_its_files_beside_the_data_base(tmp_path):
    (tmp_path / "a%2Fb?#").mkdir()
    uri = f"sqlite+pysqlite:///{tmp_path}/a%252Fb%3F%23/mlflow.db"
    with opened(uri, "e", create=True) as store:
        place = MlflowClient().get_experiment(store.id).artifact_location
    assert unquote(place) == f"{tmp_path}/a%2Fb?#/mlartifacts"
    assert [path.name for path in tmp_path.rglob("*")] == ["a%2Fb?#", "mlflow.db"]
