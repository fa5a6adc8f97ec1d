"""Pages that show the files of the project, line by line, links to their lines, and line breaks in commands.

{line}`PATH "TEXT"` is a link to the one line of PATH that holds TEXT. Links to files of the project, and the [source]
links of the API reference, lead to the same pages. Only files that something links to get a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.lexers.data import JsonLexer
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[1]
LINE = re.compile(r'(?P<path>[\w./-]+)(?: "(?P<text>.+)")?', re.S)


LINKED: set[str] = set()  # files that get a page; a build reads all pages (`-E`)


def line_number(path: str, text: str | None) -> int:
    """The number of the only line that holds the text; 1 if there is no text.

    Raises:
        ValueError: there is no such file, or not exactly one such line.
    """
    if not (ROOT / path).is_file():
        raise ValueError(f"{path}: there is no such file in the project")
    if text is None:
        return 1
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    numbers = [number for number, line in enumerate(lines, 1) if text in line]
    if len(numbers) != 1:
        raise ValueError(f'{path}: the text "{text}" is in {len(numbers)} lines, but has to be in one')
    return numbers[0]


def address(root: str, path: str, line: int) -> str:
    """The URL of a line, from a page whose relative path to the root of the site is `root`."""
    LINKED.add(path)
    return f"{root}source/{path}.html#line-{line}"


def root_from(document: str) -> str:
    return "../" * document.count("/")


def line_role(app: Sphinx) -> Any:
    def role(name: str, raw: str, quoted: str, place: int, inliner: Inliner, *_: Any) -> tuple[list, list]:
        match = LINE.fullmatch(quoted)
        try:
            if match is None:
                raise ValueError(f'{quoted}: write {{line}}`PATH "TEXT"`')
            number = line_number(match["path"], match["text"])
        except ValueError as error:
            message = inliner.reporter.error(f"line role: {error}", line=place)
            return [inliner.problematic(raw, raw, message)], [message]
        label = f"{Path(match['path']).name}:{number}" if match["text"] else match["path"]
        uri = address(root_from(app.env.docname), match["path"], number)
        return [nodes.reference("", "", nodes.literal("", label), internal=True, refuri=uri)], []

    return role


class FileLinks(SphinxTransform):
    """A link to a file of the project leads to its source page, not to a copy to download."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        folder = Path(self.env.doc2path(self.env.docname)).parent
        targets = [(node, folder / node["reftarget"]) for node in self.document.findall(addnodes.download_reference)]
        targets += [  # MyST takes any .md for a page; one outside of the site has an absolute path here
            (node, Path(f"{node['reftarget']}.md"))
            for node in self.document.findall(addnodes.pending_xref)
            if node["refdomain"] == "doc" and node["reftarget"].startswith("/")
        ]
        for node, file in targets:
            file = file.resolve()
            if file.is_file() and file.is_relative_to(ROOT):
                path = file.relative_to(ROOT).as_posix()
                uri = address(root_from(self.env.docname), path, 1)
                node.replace_self(nodes.reference("", "", *node.children, internal=True, refuri=uri))


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """The URL of an object's source from a page in `docs/api/`."""
    analyzer = ModuleAnalyzer.for_module(info["module"])
    tag = analyzer.find_tags().get(info["fullname"])
    return tag and address("../", Path(analyzer.srcname).relative_to(ROOT).as_posix(), tag[1])


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file that something links to."""
    formatter = HtmlFormatter(linenos="inline", linespans="line", anchorlinenos=True, wrapcode=True)
    for path in sorted(LINKED):
        try:
            lexer = get_lexer_for_filename(path)
        except ClassNotFound:
            lexer = TextLexer()
        code = highlight((ROOT / path).read_text(encoding="utf-8"), lexer, formatter)
        body = f"<h1>{Path(path).name}</h1><p><code>{path}</code></p>{code}"
        yield f"source/{path}", {"title": path, "body": body}, "page.html"


BASH = re.compile(r'(<div class="highlight-bash[^>]*>.*?<pre>)(.*?)(?=</pre>)', re.S)
FLAG = re.compile(r'<span class="pre">(?=-[^<]{1,36}<)')
HYPHENATED = re.compile(r"(?<=[\s>])[^\s<>]*-[^\s<>]*(?=[\s<])")


def whole_words(app: Sphinx, page: str, template: str, context: dict[str, Any], document: nodes.Node | None) -> None:
    """Commands do not break after a hyphen: words with one, and flags in a sentence, get a class for site.css."""

    def words(block: re.Match) -> str:
        return block[1] + HYPHENATED.sub(r'<span class="word">\g<0></span>', block[2])

    if "body" in context:
        context["body"] = FLAG.sub('<span class="pre flag">', BASH.sub(words, context["body"]))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_lexer("jsonl", JsonLexer)
    app.add_role("line", line_role(app))
    app.add_transform(FileLinks)
    app.connect("html-collect-pages", source_pages)
    app.connect("html-page-context", whole_words)
    return {"parallel_read_safe": False}
