"""How `make docs` builds the site."""

import importlib.metadata
import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

metadata = importlib.metadata.metadata("sparse-plugins")
links = dict(line.split(", ") for line in metadata.get_all("Project-URL") or ())

project = "sparse-plugins"
author = "The sparse-plugins authors"
release = metadata["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "offline",
]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).parent / "_static" / "scorer.js")
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the sidebar has the search box
    "use_repository_button": "Repository" in links,
    "repository_url": links.get("Repository", ""),
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}

# Headings are linked to across pages, formulas stand between dollar signs, cards between colons.
html_math_renderer = "drawn"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
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
python_use_unqualified_type_names = True
napoleon_custom_sections = [("Fields", "params_style")]


def shorten(app, what, name, obj, options, signature, annotation):
    """Gives a signature that can be read: an updater's extra fields only, and functions by name, not by address."""
    base = next((parent for parent in getattr(obj, "__mro__", ())[1:] if parent.__name__ == "BaseUpdater"), None)
    if what == "class" and base is not None:
        shared = inspect.signature(base.__init__).parameters
        fields = inspect.signature(obj).parameters.values()
        extra = [field for field in fields if field.name not in shared or field.default != shared[field.name].default]
        signature = "(" + "".join(f"{field.name}={field.default!r}, " for field in extra) + "**fields)"
    elif what == "class" and "Module" in [parent.__name__ for parent in obj.__mro__[1:]]:  # Flax adds these two
        fields = inspect.signature(obj).parameters.values()
        signature = str(inspect.Signature([field for field in fields if field.name not in ("parent", "name")]))
    if signature is None:
        return None
    signature = re.sub(r"<(?:function |class )?'?(?:[\w.]+\.)?(\w+)'?(?: object)?(?: at 0x\w+)?>", r"\1", signature)
    signature = re.sub(r"<[^<>]*>", "...", signature)
    return signature.replace("functools.partial(", "partial("), annotation


def hide_private(app, name, obj, options, bases):
    """Lists public parents only."""
    bases[:] = [base for base in bases if not getattr(base, "__name__", "").startswith("_")] or [object]


def fields_first(app, what, name, obj, options, lines):
    """Moves what the fields of a class mean to right below its first sentence."""
    if what != "class" or "Attributes:" not in lines:
        return
    start = lines.index("Attributes:")
    rest = range(start + 1, len(lines))
    end = next((i for i in rest if lines[i] and not lines[i].startswith(" ")), len(lines))
    fields = ["Fields:", *lines[start + 1 : end]]
    while not fields[-1]:
        fields.pop()
    del lines[start:end]
    summary = lines.index("") if "" in lines else len(lines)
    lines[summary:summary] = ["", *fields]


def keep_spreads_whole(app, name, source):
    """Lets no line break between a mean and its standard deviation."""
    source[0] = source[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def setup(app):
    """Connects the hooks above; fields are moved before napoleon reads them."""
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-process-bases", hide_private)
    app.connect("autodoc-process-docstring", fields_first, priority=400)
    app.connect("source-read", keep_spreads_whole)
