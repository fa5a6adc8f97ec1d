"""Kernels are compiled once. Without a compiler, results are the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_nlf.language import generation
from lightning_nlf.language.kernels import build, operations
from lightning_nlf.networks import DecoderShape, TransformerPolicy, ValueHead
from lightning_nlf.objectives import ActorCriticAgent

needs_a_compiler = pytest.mark.skipif(build.library(torch.float32) is None, reason="no C++ compiler here")
LOAD = (
    "import torch; from lightning_nlf.language.kernels.build import library; print(library(torch.float32) is not None)"
)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """`library` as in a new process, with an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return build.library.__wrapped__


@needs_a_compiler
@pytest.mark.slow
def test_two_processes_at_once_and_a_third_that_finds_it(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[4])}
    command = [sys.executable, "-c", LOAD]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].split()[-1] for process in processes] == ["True", "True"]
    (file,) = (tmp_path / "lightning_nlf" / "kernels").iterdir()  # no other file remains
    without = environment | {"CXX": "nobody-asks-for-it"}
    before = file.stat().st_mtime_ns
    third = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert third.stdout.split()[-1] == "True" and file.stat().st_mtime_ns == before
    another = subprocess.run(command, env=without, capture_output=True, text=True, check=True, timeout=120)
    assert another.stdout.split()[-1] == "False"  # another compiler makes another file


def test_no_compiler(fresh, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler was found; install g\\+\\+"):
        assert fresh(torch.float32) is None


def test_a_compiler_that_fails(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'kernels.cpp:1: no such luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", f"{broken} -m64")
    with pytest.warns(UserWarning, match="broken -m64 fails on kernels.cpp: kernels.cpp:1: no such luck"):
        assert fresh(torch.bfloat16) is None
    assert not list((tmp_path / "lightning_nlf" / "kernels").iterdir())


def test_no_place_to_put_them(fresh, monkeypatch, tmp_path):
    (tmp_path / "lightning_nlf").write_text("a file, where a folder should be")
    with pytest.warns(UserWarning, match="without C\\+\\+ kernels"):
        assert fresh(torch.float32) is None


@needs_a_compiler
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_hidden_states_are_float32_in_bf16_too(monkeypatch, family):
    """A value head reads the states, and small differences of rewards matter: rounding gives multiples of 2⁻⁸."""
    shape = DecoderShape(vocabulary=61, layers=2, heads=4, width=64, context=40, family=family)
    policy, obs = TransformerPolicy(shape), torch.randint(61, (2, 20))
    agent = ActorCriticAgent(policy=policy, value=ValueHead(width=64))

    def features():
        with torch.autocast("cpu", torch.bfloat16):
            return agent.policy.features(obs, torch.ones(2, 20, dtype=torch.bool)).detach()

    with_kernels = features()
    monkeypatch.setattr(operations, "library", lambda dtype: None)
    plain = features()
    assert with_kernels.dtype == plain.dtype == torch.float32 and not TransformerPolicy.shared
    assert not torch.equal(with_kernels, with_kernels.bfloat16().float())
    torch.testing.assert_close(with_kernels, plain, atol=0.1, rtol=0)


@needs_a_compiler
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_without_them_a_policy_learns_and_says_the_same(monkeypatch, family):
    torch.manual_seed(0)
    shape = DecoderShape(vocabulary=61, layers=2, heads=4, kv_heads=2 if family == "llama" else 0, width=64,
                         context=40, family=family)  # fmt: skip
    policy = TransformerPolicy(shape)
    obs = torch.randint(61, (6, 20))
    obs[:3, :11] = obs[0, :11]  # a stem
    where = torch.ones(6, 20, dtype=torch.bool)
    where[1, 15:] = False

    def results():
        policy.zero_grad()
        log_probs = policy(obs, where).log_prob(obs.roll(-1, 1)[where])
        log_probs.sum().backward()
        gradients = torch.cat([x.grad.flatten() for x in policy.parameters()])
        lengths = torch.tensor([20, 18, 3, 20, 20, 7])
        reply = generation.reply(policy, obs, lengths, stop=(0,), max_new=15, seeds=torch.arange(6))
        return log_probs.detach(), gradients, *reply[:3]

    with_kernels = results()
    monkeypatch.setattr(operations, "library", lambda dtype: None)
    for ours, plain in zip(with_kernels, results(), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
