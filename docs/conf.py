"""Sphinx configuration. `make docs` builds the site into build/docs; nothing is fetched from the network."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]
os.environ["PYTHONPATH"] = str(ROOT)  # for the kernel that executes the tutorial
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import bags_jax

project = "BAGS-JAX"
author = "The BAGS-JAX authors"
copyright = "The BAGS-JAX authors"
release = version = bags_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "mathml",  # these three are files of _extensions/
    "settings_tables",
    "source_lines",
    "api_pages",
]
smartquotes_action = "D"  # dashes; quotation marks stay
exclude_patterns = ["_extensions"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 4
suppress_warnings: list[str] = []

# The tutorial runs again when its code has changed, or after `make clean`.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "docs_cache")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # one entry for "means, quats, scales"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80

html_theme = "furo"  # the theme of gsplat; no fonts or scripts from elsewhere
html_title = "BAGS-JAX"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": False}
highlight_language = "text"
pygments_style, pygments_dark_style = "tango", "monokai"
