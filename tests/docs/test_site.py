"""The site: it builds strictly without a network, loads nothing from elsewhere, and its reference is complete."""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import opd_trl
from opd_trl.cli.main import COMMANDS
from opd_trl.cli.training import our_flags
from tests.browser import CHROMIUM, NO_BROWSER, launched

from .pages import ROOT


#: A proxy where nothing listens: whatever asks for the network fails.
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
#: Packages whose names the reference lists: those of floors 0 to 2. The trainers are names of `opd_trl` itself.
PACKAGES = [
    name
    for name in ["opd_trl", *(f"opd_trl.{module.name}" for module in pkgutil.iter_modules(opd_trl.__path__))]
    if getattr(importlib.import_module(name), "__all__", None) and name != "opd_trl.trainers"
]


class Loads(HTMLParser):
    """Collects the addresses that a page loads by itself, and the ids of its elements."""

    def __init__(self, page: Path):
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id"))
        if tag in ("script", "img", "iframe", "source", "video", "audio") and values.get("src"):
            self.addresses.append(values["src"])
        if tag == "link" and values.get("rel") != "canonical" and values.get("href"):
            self.addresses.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason='the site needs pip install ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | NO_NETWORK | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(site):
    pages = list(site.glob("**/*.html"))
    assert len(pages) > 15
    loaded = {address for page in pages for address in Loads(page).addresses}
    assert loaded
    assert not {address for address in loaded if re.match(r"(https?:)?//", address)}
    styles = [path.read_text(encoding="utf-8") for path in site.glob("**/*.css")]
    assert not any(re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style) for style in styles)


def test_the_reference_has_an_entry_for_every_public_name(site):
    for package in PACKAGES:
        page = site / "api" / f"{package.rpartition('.')[2]}.html"
        due = {f"{package}.{name}" for name in importlib.import_module(package).__all__}
        assert not due - Loads(page).ids


def test_the_reference_has_every_field_of_the_configurations(site):
    ids = Loads(site / "api" / "configuration.html").ids
    assert {flag.name for command in ("opd", "opsd") for flag in our_flags(command)} <= ids


def test_the_reference_has_the_help_of_every_command(site):
    text = (site / "api" / "cli.html").read_text(encoding="utf-8")
    assert not {name for name in COMMANDS if f"usage: opd-trl {name}" not in re.sub(r"<[^>]+>", "", text)}


def test_docstrings_are_rendered_not_printed(site):
    for page in (site / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<p>(?:Args|Attributes|Returns|Raises|Examples?|Source):", text), page.name
        assert "<blockquote>" not in text, f"{page.name}: a doctest that is not in a section"
        assert "[<code>" not in text, f"{page.name}: a cross-reference of TRL's dialect"


@pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
@pytest.mark.parametrize("name", ["evidence", "results", "results-rules", "gallery", "index"])
def test_the_tables_fit_the_width_of_the_page(site, name):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    with playwright.sync_playwright() as engine:
        browser = launched(engine)
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_selector(".md-typeset__table")  # the site's script puts every table into one
        widths = "all => all.map(e => [e.scrollWidth, e.parentElement.clientWidth])"
        found = page.locator(".md-typeset__table").evaluate_all(widths)
        browser.close()
    assert found
    assert all(table <= 1.05 * room for table, room in found)  # fonts differ between machines


def test_the_search_knows_the_guides_and_the_reference(site):
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    places = {entry["location"] for entry in found}
    assert {"losses.html", "api/losses.html#opd_trl.losses.reverse_kl"} <= places
