"""Parts of pages that scripts write."""

import pytest
from measure import marks_of, write_between_marks


BEGIN, END = marks_of("script")


def test_what_stands_between_the_marks_is_replaced_and_the_rest_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    write_between_marks(page, "new", "script")
    assert page.read_text() == f"# Before\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("content", [None, "no marks", BEGIN, f"{END}{BEGIN}"])
def test_a_page_without_its_marks_is_refused_and_kept(tmp_path, content):
    page = tmp_path / "page.md"
    if content is not None:
        page.write_text(content)
    with pytest.raises(ValueError, match="once and in this order"):
        write_between_marks(page, "text", "script")
    assert not page.exists() if content is None else page.read_text() == content
