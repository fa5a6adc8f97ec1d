"""Text from files and other people cannot control the terminal."""

import logging
import warnings

import pytest

from lightning_nlf.cli import noise
from lightning_nlf.cli.command_line import main
from lightning_nlf.terminal import printable
from lightning_nlf.tracking.__main__ import main as tracking

ESCAPES = "\x1b[2Jgone\rnew\x07 \u202eturned"


def test_errors_warnings_and_messages_show_control_characters_as_text(capsys, caplog, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # given back afterwards
    for _ in range(2):
        noise.silence()
    warning = warnings.formatwarning(UserWarning(f"skipped: {ESCAPES}"), UserWarning, "file.py", 1)
    with pytest.raises(SystemExit):
        main(["fit", "--config", f"{ESCAPES}.yaml"])
    assert tracking(["sync", ESCAPES]) == 2
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        logging.getLogger("lightning.pytorch").info("feedback: %s", ESCAPES)
    for text in (warning, capsys.readouterr().err, caplog.messages[-1]):
        assert r"\x1b[2Jgone" in text and not set(text) & set("\x1b\r\x07\u202e")
    assert printable("naïve 日本\t🙂\n") == "naïve 日本\t🙂\n"
