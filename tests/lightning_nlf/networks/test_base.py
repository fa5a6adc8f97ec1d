"""Checks of every network: tokenizer and vocabulary."""

import pytest
import torch

from lightning_nlf.networks import GRUPolicy, GRUValue


def checkpoint(path, **content):
    policy, value = GRUPolicy(vocabulary=5, width=4), GRUValue(vocabulary=5, width=4)
    state = {f"policy.{name}": x for name, x in policy.state_dict().items()}
    state |= {f"value.{name}": x for name, x in value.state_dict().items()}
    torch.save({"state_dict": state} | content, path)
    return str(path)


def test_weights_bring_the_digest_of_their_tokenizer(tmp_path):
    path = checkpoint(tmp_path / "a.ckpt", tokenizer_digest="a" * 64)
    for kind in (GRUPolicy, GRUValue):
        network = kind(vocabulary=5, width=4, weights=path)
        assert network.tokenizer_digest == "a" * 64
        network.check_tokenizer("a" * 64, 5)
        with pytest.raises(ValueError, match=f"tokenizer: the {network.role} was trained with a different tokenizer"):
            network.check_tokenizer("b" * 64, 5)


def test_weights_that_do_not_say_and_data_that_does_not_are_taken(tmp_path):
    silent = GRUPolicy(vocabulary=5, width=4, weights=checkpoint(tmp_path / "a.ckpt"))
    assert silent.tokenizer_digest is None
    silent.check_tokenizer("b" * 64, None)
    GRUPolicy(vocabulary=5, width=4, weights=checkpoint(tmp_path / "b.ckpt", tokenizer_digest="a")).check_tokenizer(
        None, None
    )


def test_more_ids_than_a_network_knows_are_refused():
    policy = GRUPolicy(vocabulary=5, width=4)
    policy.check_tokenizer(None, 4)
    with pytest.raises(ValueError, match="vocabulary: the policy has 5 token ids, but the data has 6"):
        policy.check_tokenizer(None, 6)
