"""A Sphinx extension for pages that need nothing from the web.

Formulas become drawings, the same in every browser, and a build whose pages fetch anything fails.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

SIZE = 16  # pixels of a letter; the drawings are measured in it
# What a browser fetches by itself for each element; links that a reader follows are not among them.
FETCHED = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "track": "src",
    "video": "src",
}
WEB = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
STYLE = re.compile(r"(?:url\(\s*|@import\s+)['\"]?((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)
SCRIPT = re.compile(r"import\s*(?:\(\s*)?['\"](https?://[^'\"]+)|\.src\s*=\s*['\"](https?://[^'\"]+)")
NOT_FETCHED = {"canonical", "search", "next", "prev", "index", "genindex", "author", "license"}  # of <link rel=...>


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.inside = tag
        fetched = given.get(FETCHED.get(tag, ""), "")
        if WEB.match(fetched) and not (tag == "link" and given.get("rel") in NOT_FETCHED):
            self.found.append(fetched)
        self.found += STYLE.findall(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.found += STYLE.findall(data)
        if self.inside == "script":
            self.found += [one or other for one, other in SCRIPT.findall(data)]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def from_the_web(folder: Path) -> Iterator[str]:
    """Yields 'file: address' for whatever the pages and styles of a folder make a browser fetch from the web."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            page = _Page()
            page.feed(path.read_text())
            yield from (f"{path.relative_to(folder)}: {address}" for address in page.found)
        elif path.suffix == ".css":
            yield from (f"{path.relative_to(folder)}: {address}" for address in STYLE.findall(path.read_text()))


def drawn(formula: str, style: str) -> str:
    """A formula in TeX as a drawing that scales with the text and takes its colour.

    Args:
        formula: What stands between the dollar signs.
        style: 'inline' or 'block'.

    Returns:
        An `<svg>` element with the formula as its label.

    Raises:
        ValueError: If a command is not known and would be shown as text.
    """
    import ziamath

    ziamath.config.svg2 = False  # shapes that other drawings of a page do not share
    math = ziamath.Latex(formula, size=SIZE, color="currentColor", inline=style == "inline")
    if unknown := re.findall(r"\\\\?[A-Za-z]+", math.mathmlstr()):
        raise ValueError(f"{', '.join(unknown)} of the formula {formula!r} would be shown as text.")
    element = math.svgxml()
    for side in ("width", "height"):
        element.set(side, f"{float(element.get(side)) / SIZE:.3f}em")
    _, top, _, height = (float(number) for number in element.get("viewBox").split())
    element.set("style", f"vertical-align: {-(top + height) / SIZE:.3f}em; max-width: 100%")
    element.set("role", "img")
    element.set("aria-label", formula)
    return ElementTree.tostring(element, encoding="unicode")


def _inline(translator, node):
    from docutils.nodes import SkipNode

    translator.body.append(drawn(node.astext(), "inline"))
    raise SkipNode


def _block(translator, node):
    from docutils.nodes import SkipNode

    translator.body.append(f'<p style="text-align: center">{drawn(node.astext(), "block")}</p>\n')
    raise SkipNode


def _check(app, exception):
    from sphinx.errors import ExtensionError

    if exception is None and app.builder.format == "html" and (found := list(from_the_web(Path(app.outdir)))):
        raise ExtensionError("pages fetch from the web:\n  " + "\n  ".join(found))


def setup(app):
    """Connects the above."""
    app.add_html_math_renderer("drawn", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
