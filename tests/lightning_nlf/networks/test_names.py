"""Names that run folders keep: a network's classes are known by the package, wherever their files stand."""

from typing import get_type_hints

import pytest
from jsonargparse import ArgumentError, ArgumentParser

import lightning_nlf.construction  # noqa: F401 (how yamls are read)
from lightning_nlf.networks import DecoderShape, TransformerPolicy


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(TransformerPolicy, "policy")
    return made


def test_a_saved_configuration_names_the_shape_by_the_package():
    init_args = {"shape": {"vocabulary": 5, "layers": 3}}
    policy = {"class_path": "lightning_nlf.networks.TransformerPolicy", "init_args": init_args}
    config = parser().parse_object({"policy": policy})
    assert "class_path: lightning_nlf.networks.DecoderShape" in parser().dump(config)
    assert parser().instantiate_classes(config).policy.decoder.shape == DecoderShape(vocabulary=5, layers=3)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"layers": "x"}, {"family": "bert"}, {"rope_theta": 0}])
def test_a_value_of_the_shape_is_checked_where_it_is_read(wrong):
    """The types are found although the class bears the name of another file."""
    assert get_type_hints(DecoderShape).keys() == DecoderShape.__dataclass_fields__.keys()
    init_args = {"shape": {"vocabulary": 5} | wrong}
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        parser().parse_object(
            {"policy": {"class_path": "lightning_nlf.networks.TransformerPolicy", "init_args": init_args}}
        )
