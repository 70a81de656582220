"""Lines of results, and the parts of pages that scripts write."""

import pytest
from lines import Results, marks_of, read_lines, write_between_marks


BEGIN, END = marks_of("script")


def test_lines_of_another_card_are_kept_and_measured_anew(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    Results(path, {"size": "full", "machine": "H200"}).add(case="ceilings", rate=1)
    results = Results(path, {"size": "full", "machine": "H100"})
    assert results.done() == set()
    results.add(case="ceilings", rate=2)
    results.add(case="ceilings", rate=3)
    assert [line["rate"] for line in read_lines(path)] == [1, 3]
    assert results.done() == {"ceilings"}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", "[]", '{"rule": "json"}', ""])
def test_a_line_that_was_cut_or_is_about_nothing_is_named(tmp_path, text):
    path = tmp_path / "r.jsonl"
    path.write_text('{"rule": "json", "seed": 0}\n' + text + "\n")
    with pytest.raises(ValueError, match=r"r\.jsonl, line 2 is no line of a case .* Remove it"):
        read_lines(path, ("rule", "seed"))


def test_two_lines_about_the_same_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(2 * '{"rule": "json"}\n')
    with pytest.raises(ValueError, match="more than one line"):
        read_lines(path, ("rule",))


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
