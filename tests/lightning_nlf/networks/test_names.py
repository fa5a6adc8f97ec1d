"""Names of classes in run folders: networks are named by their package, wherever their files are."""

from typing import get_type_hints

import pytest
from jsonargparse import ArgumentError, ArgumentParser

import lightning_nlf.construction  # noqa: F401 (how yamls are read)
from lightning_nlf.networks import DecoderShape, TransformerPolicy


def parser() -> ArgumentParser:
    config_parser = ArgumentParser(exit_on_error=False)
    config_parser.add_subclass_arguments(TransformerPolicy, "policy")
    return config_parser


def test_a_saved_configuration_names_the_shape_by_the_package():
    init_args = {"shape": {"vocabulary": 5, "layers": 3}}
    policy = {"class_path": "lightning_nlf.networks.TransformerPolicy", "init_args": init_args}
    config = parser().parse_object({"policy": policy})
    assert "class_path: lightning_nlf.networks.DecoderShape" in parser().dump(config)
    assert parser().instantiate_classes(config).policy.decoder.shape == DecoderShape(vocabulary=5, layers=3)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"layers": "x"}, {"family": "bert"}, {"rope_theta": 0}])
def test_a_value_of_the_shape_is_checked_where_it_is_read(wrong):
    """Types are resolved although the class is named by another file."""
    assert get_type_hints(DecoderShape).keys() == DecoderShape.__dataclass_fields__.keys()
    init_args = {"shape": {"vocabulary": 5} | wrong}
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        parser().parse_object(
            {"policy": {"class_path": "lightning_nlf.networks.TransformerPolicy", "init_args": init_args}}
        )
