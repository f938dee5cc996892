"""The check that pages fetch nothing from the web: what it finds, and what it leaves alone."""

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "docs" / "offline.py"
FETCHES = {
    '<script src="https://host/a.js"></script>': "https://host/a.js",
    '<script src="//host/a.js"></script>': "//host/a.js",
    '<script>import("https://host/a.mjs")</script>': "https://host/a.mjs",
    '<link rel="stylesheet" href="http://host/a.css">': "http://host/a.css",
    '<img src="https://host/a.png">': "https://host/a.png",
    "<style>@import 'https://host/a.css';</style>": "https://host/a.css",
    '<p style="background: url(https://host/a.png)">': "https://host/a.png",
}
LEFT_ALONE = [
    '<a href="https://host/paper">paper</a>',
    '<script src="_static/a.js"></script>',
    '<link rel="canonical" href="https://host/page">',
    "<pre>import 'https://host/a.js'</pre>",
    '<img src="data:image/png;base64,//aa">',
]


@pytest.fixture(scope="module")
def offline():
    spec = importlib.util.spec_from_file_location("offline", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("html", FETCHES)
def test_what_a_page_fetches_is_found(html: str, offline, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<html><body>{html}</body></html>")
    assert list(offline.from_the_web(tmp_path)) == [f"page.html: {FETCHES[html]}"]


@pytest.mark.parametrize("html", LEFT_ALONE)
def test_what_a_reader_follows_is_left_alone(html: str, offline, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<html><body>{html}</body></html>")
    assert list(offline.from_the_web(tmp_path)) == []


def test_a_style_sheet_is_read_too(offline, tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("@font-face { src: url('https://host/a.woff2') } p { background: url(b.png) }")
    assert list(offline.from_the_web(tmp_path)) == ["a.css: https://host/a.woff2"]
