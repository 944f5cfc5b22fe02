"""How the site is built: ``sphinx-build -W --keep-going docs site``.

Sphinx with the theme furo. A warning is an error: a link that leads nowhere, a page that no other
names, a name that is not there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate
import pictures

import bnfold

generate.main()
pictures.main()

project = "bnfold"
author = "bnfold developers"
project_copyright = author
release = version = bnfold.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md", "_build"]
myst_enable_extensions = ["attrs_block"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # what is included begins with its own heading

autodoc_typehints = "none"  # the text says what each argument may be
autodoc_default_options = {"show-inheritance": False}
autodoc_preserve_defaults = True
default_role = "any"

linkcheck_ignore = [r"https://github\.com/OWNER/"]  # who has the repository is not known yet
linkcheck_timeout, linkcheck_retries = 20, 3

html_theme = "furo"
html_title = f"bnfold {version}"
html_static_path: list[str] = []
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False
pygments_style = "default"
smartquotes = False  # two dashes are an option of the command, not a long dash
