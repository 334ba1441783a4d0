"""The site: `python -m sphinx -W --keep-going -n -b html notebooks build/site`.

Notebooks are shown with the outputs that they were committed with; the tests execute them, the build does not. Nothing is
fetched, neither when the site is built nor when it is read.
"""

import gc
import sys
from pathlib import Path

# The trees of all pages live until the end; looking through them again and again costs a seventh.
gc.set_threshold(100_000, 20, 50)

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_site"), str(HERE.parent)]

import logderiv

project = "logderiv"
author = "The logderiv developers"
project_copyright = "The logderiv developers, Apache-2.0"
release = version = logderiv.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "docstrings"]
exclude_patterns = ["_site", "results", "**/.ipynb_checkpoints"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
root_doc = "index"

# Pages.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the default loads scripts from hosts
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "logderiv"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
smartquotes = False  # texts in signatures and tables are often code

# Reference.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
nitpicky = True
FOREIGN = (  # names in signatures that are explained elsewhere; where they are defined changes between versions
    r"collections\.abc\.\w+",
    r"contextlib\.AbstractContextManager",
    r"os\.PathLike",
    r"numpy\.(bool|ndarray|number)",
    r"jax\.(jaxlib\.|_src\.)?[\w.]*(Array|Mesh|ConcretizationTypeError)",
    r"jaxlib\.[\w.]*ArrayImpl",
    r"jax\.tree_util\.Partial",
    r"ArrayTree",
    r"optax\.[\w.]*GradientTransformation(ExtraArgs)?",
)
PRIVATE = (  # types of the library that signatures name and no `__all__` holds
    "logderiv._core.pytrees.T",
)
nitpick_ignore = [("py:class", name) for name in PRIVATE]
nitpick_ignore_regex = [("py:(class|exc|obj)", name) for name in FOREIGN]
