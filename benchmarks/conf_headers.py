"""The header of a yaml in `conf/`: method, papers, runs that it needs, commands, and what it reached.

The first sentence is the method, with the links to its papers in parentheses. A paragraph with
`Run first: …`, if there is one, names the yamls whose results it reads. Commands are indented by four spaces. The last
paragraph begins with `Reached:`, or with `Not measured:` and the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"
LINK = re.compile(r"https?://[^\s,)]+")
SOURCE = re.compile(r"\s*\([^()]*; `python [^`]*`\)")  # interval, seeds, machine and command of a figure


@dataclass(frozen=True)
class Header:
    """The comment above the settings of a yaml, by its parts."""

    name: str  # path below conf/, without .yaml
    method: str  # the first sentence, without links and full stop
    papers: tuple[str, ...]  # links of the first sentence
    run_first: tuple[str, ...]  # paths of yamls, in order
    commands: tuple[str, ...]  # as in a shell, a continued line joined
    result: str  # from "Reached:" or "Not measured:" on
    text: str  # the whole header in one line, without comment signs

    @property
    def command(self) -> str:
        """The command that runs this yaml itself."""
        return next(line for line in self.commands if f"conf/{self.name}.yaml" in line)

    @property
    def reached(self) -> str:
        """The result without interval kind, seeds, machine and benchmark, which the yaml has."""
        return SOURCE.sub("", self.result).removeprefix("Reached: ")


def read_header(path: Path, conf: Path = CONF) -> Header:
    """Parse the comment lines above the first setting of a yaml.

    Raises:
        ValueError: a part is missing.
    """
    name = path.relative_to(conf).with_suffix("").as_posix()
    paragraphs = _paragraphs(path.read_text(encoding="utf-8"))
    prose = [" ".join(lines) for lines in paragraphs if not lines[0].startswith("    ")]
    code = "\n".join(line for lines in paragraphs if lines[0].startswith("    ") for line in lines)
    commands = tuple(" ".join(line.split()) for line in code.replace("\\\n", " ").splitlines())
    sentence = re.match(r"(.+?)\.(?= |$)", prose[0]) if prose else None
    results = [text for text in prose if text.startswith(("Reached: ", "Not measured: "))]
    if sentence is None or len(results) != 1:
        raise ValueError(f"{path}: needs a first sentence and one paragraph with Reached: or Not measured:")
    if not any(f"conf/{name}.yaml" in line for line in commands):
        raise ValueError(f"{path}: no command names conf/{name}.yaml")
    needed = re.search(r"Run first: ([^\s,]+(?:, [^\s,]+)*)\.(?: |$)", " ".join(prose))
    return Header(
        name=name,
        method=re.sub(rf"\s*\((?:{LINK.pattern}(?:, )?)+\)", "", sentence[1]),
        papers=tuple(LINK.findall(sentence[1])),
        run_first=tuple(needed[1].split(", ")) if needed else (),
        commands=commands,
        result=results[0],
        text=" ".join(" ".join(lines) for lines in paragraphs),
    )


def headers(conf: Path = CONF) -> list[Header]:
    """The headers of all yamls below `conf`, by path."""
    return [read_header(path, conf) for path in sorted(conf.rglob("*.yaml"))]


def _paragraphs(text: str) -> list[list[str]]:
    """Comment lines above the settings, split at empty ones, without `# `."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        content = line[2:]
        if content:
            paragraphs[-1].append(content)
        elif paragraphs[-1]:
            paragraphs.append([])
    return [lines for lines in paragraphs if lines]
