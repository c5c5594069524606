"""How Sphinx builds these pages: Markdown in, HTML out, with nothing fetched while building or reading."""

from importlib.metadata import version as installed_version

project = "pyadjoint-utils"
author = "The pyadjoint-utils developers"
copyright = "2026, " + author
version = release = installed_version(project)

extensions = [
    "myst_parser",
    # Carries MathJax into the built pages, so that the formulae also show without a network.
    "sphinx-mathjax-offline",
]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False
