"""Pages about your own prompts and model, done in this process: with `my/`, a server that answers, and people.

Fits are cut down to seconds. A command that an earlier page gave to the letter is not run again: its run is there.
"""

import json
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
import yaml

from data_modules.feedback.__main__ import main as feedback
from data_modules.feedback.people.store import DEFAULT_EXPERIMENT, DEFAULT_URI, opened, pages
from data_modules.feedback.people.traces import queue_items
from data_modules.judgements.parsing import parse
from data_modules.text.prompt_file import read_line
from lightning_nlf.cli.command_line import main
from tests.data_modules.feedback.people.conftest import Person
from tests.data_modules.feedback.providers.conftest import Script, asked_of, chat
from tests.documents import ROOT, commands, page_blocks
from tests.my_folder import CRITIQUE, my_folder

ADDRESS = "http://localhost:8000/v1"
REVIEWED = 8  # items of a queue that the person answers
QUIET = "--trainer.enable_progress_bar false"
SHORT = "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --trainer.logger false"
FEW = {
    "FeedbackDataModule": "--data.evaluation_prompts 2 --data.minibatches 1",
    "TextDataModule": "--data.prompts 2 --data.evaluation_prompts 2 --data.max_new 8",
    "RevisionDataModule": "--data.prompts 2 --data.evaluation_prompts 2 --data.max_new 8",
}


class Server(Script):
    """Says what is asked for: numbers and preferences that come from the question, one critique, one revision."""

    def __init__(self):
        super().__init__()
        self.answer = self._answer
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def _answer(self, body):
        text = asked_of(body)
        share = crc32(text.encode()) % 90 / 100 + 0.05
        if re.search(r"Preferred \w+=", text):
            return chat("1", [{"1": share, "2": 1 - share}])
        if "Rating=" in text:
            number = str(int(10 * share))
            return chat(number, [{number: 1.0}])
        return chat(CRITIQUE)

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Journey:
    """A folder with `conf/` and `my/`, in which pages are done; the process must be in it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.commands_run: set[str] = set()
        shutil.copytree(ROOT / "conf", folder / "conf")
        for path in (folder / "conf").rglob("*.yaml"):
            path.write_text(self._served(path.read_text()))
        self.furnish()

    def furnish(self) -> None:
        """Put into the folder what the pages say is there."""
        my_folder(self.folder)

    def _served(self, text: str) -> str:
        return text.replace(ADDRESS, self.url)

    def do(self, page: str) -> None:
        """All that a page says, in order."""
        for block in page_blocks(page):
            path = Path(block.file or "")
            if block.language == "jsonl" and (block.file is None or path.exists()):
                check_lines(block.text)  # of a file that is there: an example of its lines
            elif block.file:
                path.parent.mkdir(exist_ok=True)
                path.write_text(self._served(block.text), encoding="utf-8")
            elif block.is_run:
                for command in filter(None, commands(block.text)):
                    self.run(" ".join(command.split()), block.fast)

    def run(self, command: str, further: str = "") -> None:
        """Args: further: words for a fit.  Raises AssertionError: the command fails."""
        if command.startswith("python -m lightning_nlf.tracking ui"):
            return self.review()
        if command in self.commands_run:
            return None
        self.commands_run.add(command)
        _, _, module, *words = shlex.split(command)
        if module == "data_modules.feedback":
            assert feedback(words) == 0, command
        elif words[0] == "chat":
            self.talk(words)
        else:
            main([*words, *self.cut_down(words), *(shlex.split(further) if words[0] == "fit" else [])])
        return None

    def cut_down(self, words: list[str]) -> list[str]:
        """Flags that make a run of seconds, where the page does not say them itself."""
        config = yaml.safe_load(Path(words[words.index("--config") + 1]).read_text())
        few = FEW[config["data"]["class_path"].rpartition(".")[2]] if words[0] == "fit" else "--data.max_new 8"
        return shlex.split(f"{QUIET} {SHORT if words[0] == 'fit' else ''} {few}")

    def talk(self, words: list[str]) -> None:
        """Two lines of a person, from a file."""
        path = self.folder / "typed.txt"
        path.write_text("What is rich in iron?\nAnd in zinc?\n")
        terminal = sys.stdin
        with path.open() as sys.stdin:
            main([*words, "--max_new", "8"])
        sys.stdin = terminal

    def review(self) -> None:
        """One person answers the first items of every queue that wait."""
        from mlflow.genai.review_queues import list_review_queues  # takes seconds

        place = {"tracking_uri": DEFAULT_URI, "experiment": DEFAULT_EXPERIMENT}
        with opened(DEFAULT_URI, DEFAULT_EXPERIMENT) as store:
            queues = list(pages(list_review_queues, experiment_id=store.id))
            waiting = {q.name: [item for item in queue_items(store, q) if item.status == "pending"] for q in queues}
        for name, items in waiting.items():
            for number, item in enumerate(items[:REVIEWED]):
                answers = {"ranking": ("A > B", "A = B", "B > A")[number % 3]}
                if len(item.record["responses"]) == 1:
                    answers = {"score": number % 5 / 4, "comment": CRITIQUE, "expected_response": "As per the USDA."}
                Person(place, name).reviews(item.record["id"], **answers)


def check_lines(text: str) -> None:
    """Raises Faults: a line that is neither one of a feedback file nor one of a prompt file."""
    for line in text.splitlines():
        record = json.loads(line)
        if "responses" in record:
            parse(record)
        else:
            read_line(record, "page")


def in_folder(kind: type[Journey], folder: Path) -> Iterator[Journey]:
    """A journey in a folder, with a server that answers; both end when the iterator does."""
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LIGHTNING_NLF_RUN_DIR", "")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield kind(folder, server.url)
    server.close()
