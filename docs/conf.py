"""Settings of the documentation site:  python -m sphinx -E -W --keep-going -b html docs build/docs

Pages are Markdown (MyST) and read well as plain files too. What they may use beyond Markdown:

- {line}`lightning_nlf/objectives/dpo.py "return -F.logsigmoid(beta * difference)"` links to the line that holds the
  quoted text, on a page of this site that shows the file. The build fails unless exactly one line holds it. Without a
  quoted text, {line}`conf/injection.yaml` links to the top of the file. Paths start at the root of the project.
- A link to a file of the project, such as [the main job](../conf/injection.yaml), leads to its source page too.
- {py:class}`lightning_nlf.objectives.dpo.DPOPolicy`, {py:func}`…` and {py:mod}`…` link to the API reference, by the
  module that defines the name; `~` in front shows the last part only.
- tests/test_docs.py runs the blocks of code. tests/documents.py explains `<!-- fast: … -->` and `<!-- not run: … -->`.
- Directives have a fence of colons, `:::{include} ../benchmarks/results/rlhf.md`. A fence of backticks is code.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

from source_pages import linkcode_resolve as linkcode_resolve  # noqa: E402  sphinx.ext.linkcode takes it from here

project = "lightning_nlf"
html_title = "lightning_nlf"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
    "sphinx_copybutton",
    "source_pages",
    "api_pages",
]
suppress_warnings = ["toc.empty_glob"]  # until the pages on methods and feedback are there
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
nitpicky = True  # a reference to a class that is not there is an error; those of other packages are left alone
nitpick_ignore_regex = [("py:.*", r"(lightning|torch|torchmetrics|rich|httpx2?)\..*"), ("py:class", r".*\._\w+")]
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100

html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_sidebars = {"concepts": [], "evidence": [], "experiments": []}  # no pages below it, or wide tables
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "collapse_navigation": True,
    "navigation_depth": 3,
    "footer_start": ["sphinx-version"],
    "footer_end": ["theme-version"],
    "primary_sidebar_end": [],
}
