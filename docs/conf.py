"""How `make docs` builds the site."""

import importlib.metadata
import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "sparse-plugins"
author = "The sparse-plugins authors"
release = importlib.metadata.version("sparse-plugins")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "offline"]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}

# Headings are linked to across pages, formulas stand between dollar signs.
html_math_renderer = "drawn"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Every notebook runs in every build: its output is that of the package as it is.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
default_role = "py:obj"
maximum_signature_line_length = 80
napoleon_use_ivar = True


def shorten(app, what, name, obj, options, signature, annotation):
    """Signatures to be read: of an updater its own fields, and functions by name instead of their address."""
    base = next((kind for kind in getattr(obj, "__mro__", ())[1:] if kind.__name__ == "BaseUpdater"), None)
    if what == "class" and base is not None:
        shared = inspect.signature(base).parameters
        fields = inspect.signature(obj).parameters.values()
        own = [field for field in fields if field.name not in shared or field.default != shared[field.name].default]
        signature = "(" + "".join(f"{field.name}={field.default!r}, " for field in own) + "**fields)"
    if signature is None:
        return None
    signature = re.sub(r"<(?:function|class) '?(?:[\w.]+\.)?(\w+)'?(?: at 0x\w+)?>", r"\1", signature)
    return signature.replace("functools.partial(", "partial("), annotation


def setup(app):
    """Connects the hook above."""
    app.connect("autodoc-process-signature", shorten)
