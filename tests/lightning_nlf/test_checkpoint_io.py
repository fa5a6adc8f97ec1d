from __future__ import annotations

import errno
import os
import pickle
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_nlf import checkpoint_io
from lightning_nlf.checkpoint_io import SafeCheckpointIO


class Hostile:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoint = {"epoch": 3, "state_dict": {"w": torch.arange(4.0)}, "callbacks": {"a": [1.5, None, "x", True]}}
    SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "new/a.ckpt")
    checkpoint_again = SafeCheckpointIO().load_checkpoint(tmp_path / "new/a.ckpt")
    assert torch.equal(checkpoint_again["state_dict"].pop("w"), torch.arange(4.0))
    assert checkpoint_again == {"epoch": 3, "state_dict": {}, "callbacks": {"a": [1.5, None, "x", True]}}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("form", ["torch", "old pickle", "new pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "hostile.ckpt"
    content = {"state_dict": {}, "payload": Hostile(marker)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2 if form == "old pickle" else 5))
    # torch's safe reader gives up on a newer pickle before it reads the name.
    message = "is damaged, incomplete" if form == "new pickle" else "was refused: it contains `posix.mkdir`"
    with pytest.raises(ValueError, match=rf"hostile\.ckpt {message}"):
        SafeCheckpointIO().load_checkpoint(path)
    with pytest.raises(ValueError, match="weights_only=False"):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)
    trainer = L.Trainer(
        plugins=[SafeCheckpointIO()], accelerator="cpu", logger=False, default_root_dir=tmp_path, fast_dev_run=True
    )
    with pytest.raises(ValueError, match=rf"hostile\.ckpt {message}"):
        trainer.fit(BoringModel(), ckpt_path=path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(content))  # the payload works if it is loaded
    assert marker.exists()


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "whole.ckpt"
    SafeCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(1000)}}, path)
    whole = path.read_bytes()
    broken = {
        "cut": whole[:-100],
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "noise": b"\0\xff" * 99,
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged, incomplete or not a checkpoint"):
            SafeCheckpointIO().load_checkpoint(tmp_path / name)
    torch.save(torch.ones(3), tmp_path / "tensor")
    with pytest.raises(ValueError, match="it contains a Tensor"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "tensor")
    with pytest.raises(FileNotFoundError, match="missing"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "missing")


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"epoch": 1}, path)
    with pytest.raises(ValueError, match=r"last\.ckpt: the checkpoint contains `pathlib"):
        SafeCheckpointIO().save_checkpoint({"epoch": 2, "folder": tmp_path}, path)
    assert SafeCheckpointIO().load_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_is_synced_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    clock = iter([0.0, 4.9, 5.0, 6.0])
    monkeypatch.setattr(checkpoint_io.time, "monotonic", lambda: next(clock))
    plugin, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    part, folder = str(tmp_path / ".last.ckpt.part"), str(tmp_path)
    plugin.save_checkpoint({}, path)
    assert synced == [part, folder]
    plugin.save_checkpoint({}, path)
    assert synced == [part, folder]
    plugin.save_checkpoint({}, path)
    assert synced == [part, folder] * 2
    plugin.save_checkpoint({}, path)
    plugin.teardown()
    assert synced == [part, folder] * 2 + [str(path)]
    plugin.teardown()
    assert len(synced) == 5


def test_a_full_disk_leaves_the_old_file_and_one_error(tmp_path: Path) -> None:
    """The temporary file is a link to /dev/full, which is always full."""
    path = tmp_path / "last.ckpt"
    plugin = SafeCheckpointIO()
    plugin.save_checkpoint({"epoch": 1}, path)
    (tmp_path / ".last.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match="cannot save the checkpoint; the previous one is unchanged: No space left"
    ) as caught:
        plugin.save_checkpoint({"epoch": 2, "x": torch.ones(100_000)}, path)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert plugin.load_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_disk_that_fills_up_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    """The limit for files is 100 kB, and the second checkpoint has 400 kB."""
    path = tmp_path / "last.ckpt"
    plugin = SafeCheckpointIO()
    plugin.save_checkpoint({"epoch": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="cannot save the checkpoint; the previous one is unchanged: File too large"):
            plugin.save_checkpoint({"epoch": 2, "x": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert plugin.load_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_kill_leaves_a_whole_file(tmp_path: Path) -> None:
    """A child saves 1 and then 2, and is killed during the second: at write 1, 4, 7 …, and before and after the rename.

    The file is the new one only after the rename.
    """
    script = """
        import os, signal, sys
        from pathlib import Path
        import torch
        from lightning_nlf import checkpoint_io
        torch.set_num_threads(1)
        path, part = Path(sys.argv[1]), Path(sys.argv[1]).with_name(".last.ckpt.part")
        write, replace = checkpoint_io._Recorder.write, os.replace

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        def at_write(number):
            left = iter(range(1, 10_000))
            checkpoint_io._Recorder.write = lambda *given: die() if next(left) == number else write(*given)

        def before_rename(_):
            os.replace = die

        def after_rename(_):
            os.replace = lambda *given: die(replace(*given))

        def killed(arm, number=0):
            child = os.fork()
            if child == 0:
                plugin = checkpoint_io.SafeCheckpointIO()
                for n in (1, 2):
                    if n == 2:
                        arm(number)
                    plugin.save_checkpoint({"n": n, "x": torch.full((100_000,), float(n))}, path)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            loaded = checkpoint_io.SafeCheckpointIO().load_checkpoint(path)
            assert (loaded["x"] == loaded["n"]).all()
            if not os.WIFSIGNALED(status):
                return ()
            sizes.append(part.stat().st_size if part.exists() else 0)
            part.unlink(missing_ok=True)
            return loaded["n"]

        sizes, numbers = [], range(1, 10_000, 3)
        within = [n for n in iter(lambda points=iter(numbers): killed(at_write, next(points)), ())]
        print(set(within), max(sizes) > 400_000, killed(before_rename), killed(after_rename))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "last.ckpt")]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True).stdout
    assert output == "{1} True 1 2\n"
