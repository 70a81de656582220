"""Every link of the pages leads to a file, and to a heading of it."""

import pytest

from .pages import PAGES, ROOT, anchors, links, slug


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    lost = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            lost.append(link)
        elif anchor and target.suffix == ".md" and "<!-- " not in target.read_text(encoding="utf-8"):
            lost += [link] if anchor not in anchors(target) else []
    assert not lost


def test_pages_have_one_title():
    for page in PAGES:
        first = page.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), page


def test_anchors_are_made_as_the_site_makes_them():
    toc = pytest.importorskip("markdown.extensions.toc", reason="the docs extra is not installed")
    for title in ("What hurt there, and what happens here", "`many_faces`", "ms-swift", "Two  words: a - b"):
        assert slug(title) == toc.slugify(title, "-")
