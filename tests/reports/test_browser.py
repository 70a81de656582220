"""The page in a real browser: what is painted, what is said, and that nothing is asked of the network."""

import io

import pytest
from PIL import Image

from tests.browser import CHROMIUM, NO_BROWSER, launched
from tests.reports.made import HOSTILE, log_line, sample, session, warning, whole_run, write_run


playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        browser = launched(engine)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, report, tmp_path):
    """Report runs and open the page; afterwards there was no message, no dialog and no request but for the page."""
    said, asked, contexts, expected = [], [], [], []

    def run(*folders, scheme="light", says=""):
        expected.append(says)
        status, _, error = report(*folders, "--output", tmp_path / "page.html")
        assert status == 0, error
        contexts.append(browser.new_context(color_scheme=scheme, viewport={"width": 1300, "height": 900}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=10_000)
        return page

    yield run
    for context in contexts:
        context.close()
    # The texts of the only messages that a test asked for.
    assert [text for text in said if not (expected[0] and expected[0] in text)] == []
    assert asked == [(tmp_path / "page.html").as_uri()]


def picture(place) -> Image.Image:
    """A page or an element as pixels."""
    options = {"full_page": True} if hasattr(place, "goto") else {}
    return Image.open(io.BytesIO(place.screenshot(**options))).convert("RGB")


def colours(image: Image.Image) -> dict[tuple[int, int, int], int]:
    """Colour -> how many pixels have it."""
    return {colour: count for count, colour in image.getcolors(maxcolors=2**24)}


def rgb(page, name: str) -> tuple[int, int, int]:
    """What a colour of the style sheet is in the scheme of the page."""
    script = "name => { const e = document.createElement('i'); e.className = name; e.style.color = 'var(--c)';"
    script += "document.body.append(e); return getComputedStyle(e).color.match(/\\d+/g).map(Number) }"
    return tuple(page.evaluate(script, name))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_painted_in_light_and_in_dark(show, tmp_path, scheme):
    page = show(whole_run(tmp_path / "run", collapses=True), scheme=scheme)
    whole = picture(page)
    found = colours(whole)
    assert len(found) > 200
    background = max(found, key=found.get)
    assert (sum(background) > 600) == (scheme == "light")
    charts = page.locator("figure.chart").all()
    assert len(charts) == 16
    line = rgb(page, "c0")
    for chart in charts:
        box = chart.bounding_box()
        part = whole.crop((box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]))
        assert colours(part).get(line, 0) > 100, chart.get_attribute("id")


def test_a_curve_runs_where_its_values_are(show, tmp_path):
    rows = [{"step": i, "session": 0, "loss": 1.0 if i < 50 else 3.0} for i in range(100)]
    page = show(write_run(tmp_path / "run", lines=rows))
    points = page.locator("#chart-loss path.line").get_attribute("d")[1:].split("L")
    places = [tuple(map(float, point.split())) for point in points]
    assert len(places) == 100
    assert len({y for _, y in places[:50]}) == len({y for _, y in places[50:]}) == 1
    assert places[0][1] > places[-1][1] + 100  # pixels grow downward
    assert [x for x, _ in places] == sorted(x for x, _ in places)


def test_hovering_shows_the_values_of_a_step_in_all_charts(show, tmp_path):
    page = show(whole_run(tmp_path / "run", collapses=True))
    box = page.locator("#chart-divergence .plot")
    box.scroll_into_view_if_needed()
    box.hover(position={"x": box.bounding_box()["width"] - 15, "y": 80})
    value = log_line(100, collapses=True)["distillation/per_token_divergence"]
    told = page.locator("#tooltip").inner_text()
    assert "step 100" in told
    assert f"{value:.4g}" in told
    box.hover(position={"x": 55, "y": 80})
    first = log_line(1, collapses=True)
    assert "step 1 " in page.locator("#tooltip").inner_text()
    assert page.locator("#chart-loss .entry b").inner_text() == f"{first['loss']:.4g}"
    page.mouse.move(5, 5)
    assert page.locator("#tooltip").is_hidden()
    assert page.locator("#chart-loss .entry b").inner_text() != f"{first['loss']:.4g}"


def test_dragging_zooms_all_charts_and_the_button_goes_back(show, tmp_path):
    page = show(whole_run(tmp_path / "run"))
    chart = page.locator("#chart-divergence .plot")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    before = page.locator("#chart-loss path.line").get_attribute("d")
    page.mouse.move(box["x"] + 100, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 60, steps=4)
    page.mouse.up()
    assert page.locator("#chart-loss path.line").get_attribute("d") != before
    page.locator("#unzoom").click()
    assert page.locator("#chart-loss path.line").get_attribute("d") == before


def test_smoothing_and_logarithmic_axes_change_the_curves(show, tmp_path):
    page = show(whole_run(tmp_path / "run"))
    seen = [page.locator("#chart-loss path.line").get_attribute("d")]
    page.locator("#smoothing").fill("0.9")
    seen.append(page.locator("#chart-loss path.line").get_attribute("d"))
    assert page.locator("#chart-loss path.faint").count() == 1
    page.locator("#chart-loss .log").click()
    seen.append(page.locator("#chart-loss path.line").get_attribute("d"))
    page.locator("#log-all").check()
    assert page.locator("#chart-loss path.line").get_attribute("d") == seen[-1]
    assert len(set(seen)) == 3


def test_a_logarithmic_axis_passes_over_what_is_not_positive(show, tmp_path):
    rows = [{"step": i, "session": 0, "loss": value, "grad_norm": -1.0} for i, value in enumerate([1.0, -1.0, 100.0])]
    page = show(write_run(tmp_path / "run", lines=rows))
    page.locator("#log-all").check()
    assert page.locator("#chart-loss path.line").get_attribute("d").count("L") == 1
    assert page.locator("#chart-grad_norm path.line").get_attribute("d").count("L") == 2


def test_a_warning_stands_in_its_curve_and_its_link_leads_there(show, tmp_path):
    page = show(whole_run(tmp_path / "run", collapses=True))
    assert page.locator("#warnings .alarm").count() == 2
    assert page.locator("#chart-repetition .flag").count() == 1
    assert page.locator("#chart-loss .flag").count() == 0
    assert page.locator("#chart-loss line.warning").count() == 2
    page.locator("#warnings .alarm a").first.click()
    assert page.url.endswith("#chart-repetition")
    assert page.locator("#chart-repetition:target").count() == 1


def test_values_that_were_not_finite_and_resumes_are_marked(show, tmp_path):
    parts = [session(ended=None, outcome=None), session(first_step=4)]
    rows = [log_line(i) for i in range(1, 7)] + [log_line(i, session=1) for i in range(5, 9)]
    rows[1] |= {"loss": None, "not_finite": ["loss"]}
    page = show(write_run(tmp_path / "run", sessions=parts, lines=rows))
    assert page.locator("#chart-loss .broken").count() == 1
    assert page.locator("#chart-grad_norm .broken").count() == 0
    assert page.locator("#chart-loss .resume").count() == 1


def test_two_runs_share_charts_and_one_can_be_hidden(show, tmp_path):
    page = show(whole_run(tmp_path / "a", collapses=True), whole_run(tmp_path / "b", steps=110))
    chart = page.locator("#chart-support")
    assert chart.locator("path.line").count() == 4
    painted = colours(picture(chart))
    assert all(painted.get(rgb(page, name), 0) > 100 for name in ("c0", "c1"))
    page.locator("button[data-run='0']").click()
    assert chart.locator("path.line").count() == 2
    assert page.locator("#sample-cards h3").all_inner_texts() == ["a, step 100", "b, step 110"]


def test_turning_to_another_step_shows_its_samples_and_hovering_a_token_its_figures(show, tmp_path):
    rows = [sample(1, tokens=["first", "\n", "\u202eend"]), sample(20, tokens=["later"])]
    rows[0] |= {"divergence": [1.25, 0.01, None], "log_ratio": [-1.5, 0.1, None]}
    page = show(write_run(tmp_path / "run", lines=[log_line(1)], samples=rows))
    assert page.locator(".completion").all_inner_texts() == ["first⏎\n\\u202eend", "later"]
    assert page.locator("#sample-cards h3").all_inner_texts() == ["step 1", "step 20"]
    page.locator("#sample-before").click()
    assert page.locator("#sample-step").inner_text() == "step 1 (1 of 2)"
    assert page.locator(".completion").inner_text() == "first⏎\n\\u202eend"
    tokens = page.locator(".completion span")
    assert [name[0] for name in tokens.evaluate_all("all => all.map(e => e.className)")] == ["t", "t", "n"]
    tokens.first.hover()
    told = page.locator("#tooltip").inner_text()
    assert "token 1 of 3" in told
    assert "1.25" in told
    assert "-1.5" in told
    page.locator("#colour-by").select_option("r")
    assert tokens.evaluate_all("all => all.map(e => e.className[0])") == ["t", "u", "n"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_every_colour_of_a_token_can_be_read(show, tmp_path, scheme):
    page = show(whole_run(tmp_path / "run", steps=10), scheme=scheme)
    script = """() => ['t', 'u'].flatMap(kind => [...Array(9).keys()].map(level => {
      const token = document.querySelector('.completion span')
      token.className = kind + level
      const style = getComputedStyle(token)
      return [style.color, style.backgroundColor].map(c => c.match(/[\\d.]+/g).map(Number))
    }))"""
    shades = set()
    for text, back in page.evaluate(script):
        shades.add(tuple(back))
        if len(back) == 3:
            assert contrast(text, back) >= 4.5
    assert len(shades) == 17  # the two lowest levels have no colour


def contrast(*pair) -> float:
    """Contrast of two sRGB colours. Source: WCAG 2.2, "contrast ratio"."""

    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, pair))
    return (high + 0.05) / (low + 0.05)


def test_hostile_text_is_shown_as_text(show, tmp_path):
    evil = "".join(HOSTILE)
    told = session(student=evil, teachers={"": evil}, config={evil: evil})
    rows = {
        "lines": [{"step": 1, "session": 0, evil: 1.0, "loss": 1.0}],
        "samples": [sample(1, tokens=HOSTILE, prompt=evil, teacher_prompt=evil, divergence=[1.0], log_ratio=[1.0])],
        "warnings": [warning(1, rule=evil, figure=evil, message=evil)],
    }
    page = show(write_run(tmp_path / "run", sessions=[told], **rows))
    assert page.locator(".completion").inner_text() == evil
    assert page.locator(".sample pre").first.inner_text() == evil
    assert page.locator(".alarm p").nth(1).inner_text() == evil
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    page.locator(".completion span").first.hover()
    assert HOSTILE[0] in page.locator("#tooltip").inner_text()


def test_a_script_that_is_not_the_pages_own_would_not_run(show, tmp_path):
    page = show(write_run(tmp_path / "run", lines=[log_line(1)]), says="Content Security Policy")
    script = "() => { const s = document.createElement('script'); s.textContent = 'window.taken = 1';"
    script += "addEventListener('securitypolicyviolation', e => { window.stopped = e.violatedDirective });"
    script += (
        "document.body.append(s); return new Promise(f => setTimeout(() => f([window.taken, window.stopped]), 100)) }"
    )
    assert page.evaluate(script) == [None, "script-src-elem"]


def test_a_run_without_lines_samples_or_warnings_has_a_page_that_works(show, tmp_path):
    page = show(write_run(tmp_path / "run", sessions=[session(ended=None, outcome=None)]))
    assert "just started" in page.locator(".headline").inner_text()
    assert page.locator("#samples .note").inner_text() == "No samples were logged."


def test_the_button_changes_between_light_and_dark(show, tmp_path):
    page = show(write_run(tmp_path / "run", lines=[log_line(1)]))
    shade = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(shade)
    page.locator("#theme").click()
    assert page.evaluate(shade) != light
    page.locator("#theme").click()
    assert page.evaluate(shade) == light


def test_the_page_fits_a_phone(show, tmp_path):
    page = show(whole_run(tmp_path / "run", steps=20, collapses=True))
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
