"""The header of a yaml in `conf/`: method, papers, runs that it needs, commands, and what it reached.

The first sentence is the method, with the links to its papers in parentheses. A paragraph with
`Run first: …`, if there is one, names the yamls whose results it reads. Commands are indented by four spaces. The last
paragraph begins with `Reached:`, or with `Not measured:` and the reason.

A variant is the yaml with flags. It has such paragraphs of its own after those of the yaml, and the first one begins
with `Variant dpo_hinge: `. Its command has `--run_dir outputs/reviews/dpo_hinge-seed0`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"
LINK = re.compile(r"https?://[^\s,)]+")
RUN = r"[^\s,]+(?: \(\w+\))?"  # conf/reviews/ppo.yaml, or a variant: conf/reviews/ppo.yaml (second_ppo)
SOURCE = re.compile(r"\s*\([^()]*; `python [^`]*`\)")  # interval, seeds, machine and command of a figure


@dataclass(frozen=True)
class Header:
    """The comment above the settings of a yaml or the part of it about a variant, by its parts."""

    name: str  # path below conf/, without .yaml; of a variant, with its name in place of the yaml's
    yaml: str  # path of the yaml below conf/, without .yaml
    method: str  # the first sentence, without links and full stop
    papers: tuple[str, ...]  # links of the first sentence
    run_first: tuple[str, ...]  # paths of yamls, in order; a variant without them needs those of its yaml
    commands: tuple[str, ...]  # as in a shell, a continued line joined
    result: str  # from "Reached:" or "Not measured:" on
    text: str  # the whole header in one line, without comment signs

    @property
    def command(self) -> str:
        """The command that runs this yaml or variant itself."""
        lines = (line for line in self.commands if f"conf/{self.yaml}.yaml" in line)
        return next(line for line in lines if self.name == self.yaml or f" outputs/{self.name}-seed0" in line)

    @property
    def flags(self) -> list[str]:
        """What makes a variant of the yaml: the flags of its command without the run folder."""
        _, _, flags = self.command.partition(f"conf/{self.yaml}.yaml")
        return shlex.split(flags.replace(f" --run_dir outputs/{self.name}-seed0", "")) if self.name != self.yaml else []

    @property
    def reached(self) -> str:
        """The result without interval kind, seeds, machine and benchmark, which the yaml has."""
        return SOURCE.sub("", self.result).removeprefix("Reached: ")


def read_headers(path: Path, conf: Path = CONF) -> list[Header]:
    """Parse the comment lines above the first setting of a yaml: the yaml itself, then its variants.

    Raises:
        ValueError: a part is missing.
    """
    yaml = path.relative_to(conf).with_suffix("").as_posix()
    parts: list[tuple[str, list[list[str]]]] = [(yaml, [])]
    for lines in _paragraphs(path.read_text(encoding="utf-8")):
        if variant := re.match(r"Variant (\w+): ", lines[0]):
            parts.append((f"{yaml.rpartition('/')[0]}/{variant[1]}", []))
            lines = [lines[0].removeprefix(variant[0]), *lines[1:]]
        parts[-1][1].append(lines)
    first, *variants = [_header(name, yaml, paragraphs, path) for name, paragraphs in parts]
    return [first, *(replace(x, run_first=x.run_first or first.run_first) for x in variants)]


def _header(name: str, yaml: str, paragraphs: list[list[str]], path: Path) -> Header:
    prose = [" ".join(lines) for lines in paragraphs if not lines[0].startswith("    ")]
    code = "\n".join(line for lines in paragraphs if lines[0].startswith("    ") for line in lines)
    commands = tuple(" ".join(line.split()) for line in code.replace("\\\n", " ").splitlines())
    sentence = re.match(r"(.+?)\.(?= |$)", prose[0]) if prose else None
    results = [text for text in prose if text.startswith(("Reached: ", "Not measured: "))]
    if sentence is None or len(results) != 1:
        raise ValueError(f"{path}: needs a first sentence and one paragraph with Reached: or Not measured:")
    place = f"conf/{name}.yaml" if name == yaml else f"outputs/{name}-seed0"
    if not any(place in line for line in commands):
        raise ValueError(f"{path}: no command names {place}")
    needed = re.search(rf"Run first: ({RUN}(?:, {RUN})*)\.(?: |$)", " ".join(prose))
    return Header(
        name=name,
        yaml=yaml,
        method=re.sub(rf"\s*\((?:{LINK.pattern}(?:, )?)+\)", "", sentence[1]),
        papers=tuple(LINK.findall(sentence[1])),
        run_first=tuple(re.sub(r"\w+\.yaml \((\w+)\)", r"\1.yaml", run) for run in needed[1].split(", "))
        if needed
        else (),
        commands=commands,
        result=results[0],
        text=" ".join(" ".join(lines) for lines in paragraphs),
    )


def headers(conf: Path = CONF) -> list[Header]:
    """The headers of all yamls below `conf` and of their variants, by name."""
    every = [header for path in sorted(conf.rglob("*.yaml")) for header in read_headers(path, conf)]
    return sorted(every, key=lambda header: header.name)


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
