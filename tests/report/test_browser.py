"""The page in a browser: it needs nothing, complains about nothing, and can be searched, filtered, sorted and gone
through by keys. What browser, and how to get one: tests/browser.py.
"""

import pytest
from browser import browsing
from reported import answered, reject, response

from batchgen.report.make import page_of

pytestmark = pytest.mark.slow
JAPANESE = "駅はどこですか"
HOSTILE = "</script><img src=x onerror='window.hit = 1'>\u202e"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page about 60 rows: one is hostile, one is Japanese, one was cut, two fail a check."""
    folder = tmp_path_factory.mktemp("pages")

    def row(number: int) -> dict:
        text = {7: HOSTILE, 8: JAPANESE}.get(number, f"answer {number}")
        failed = ["empty"] if number in (20, 21) else []
        reason = "length" if number == 30 else "stop"
        return response(number, text, finish_reason=reason, response_tokens=number, tries=1, failed_checks=failed)

    out = answered(
        folder / "out", [[row(number) for number in range(60)]], rows=61, shard_rows=61, rejects=[reject(60)],
        check={"checks": ["empty"]},
    )  # fmt: skip
    (folder / "page.html").write_bytes(page_of([out]))
    return folder / "page.html"


@pytest.fixture
def page(browser, path):
    browser.errors.clear()
    browser.requests.clear()
    browser.look(1200)
    browser.open(path)
    browser.wait_for("!document.querySelector('#tools').hidden")
    return browser


def ids(page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.case h3')].map((each) => each.textContent)")


def found(page) -> str:
    return page.evaluate("document.querySelector('#found').textContent")


def test_it_asks_for_nothing_and_complains_about_nothing(page, path):
    page.evaluate("document.querySelector('#more').click()")
    assert page.requests == [path.as_uri()] and page.errors == []


def test_text_of_the_data_is_text(page):
    page.click("#words")
    page.type("onerror")
    assert ids(page) == ["r7"]
    shown = page.evaluate("document.querySelector('.answer .text').textContent")
    assert shown == HOSTILE.replace("\u202e", "⟨U+202E⟩")
    assert page.evaluate("[document.images.length, window.hit ?? null]") == [0, None]


def test_the_script_makes_the_same_cases_as_python(page, path):
    """Of the first ones, which are there without it."""
    read = "[...document.querySelectorAll('.case')].map((each) => each.outerHTML)"
    made = page.evaluate(read)
    page.open(path, script=False)
    plain = page.evaluate(read)
    assert len(plain) == 20 and made[:20] == plain


def test_without_the_script_there_are_figures_and_the_first_samples(page, path):
    page.open(path, script=False)
    seen = page.evaluate("document.body.innerText")
    assert "ended by stop" in seen and "Without its script" in seen
    assert page.evaluate("document.querySelectorAll('svg').length") >= 3
    assert not page.evaluate("document.querySelector('#tools').checkVisibility()")


def test_a_filter_leaves_what_it_names_and_its_undoing_brings_all_back(page):
    page.evaluate(
        "[...document.querySelectorAll('.chips button')].find((b) => b.textContent.startsWith('fails')).click()"
    )
    assert sorted(ids(page)) == ["r20", "r21"] and found(page) == "2 of 60"
    assert page.evaluate("document.querySelectorAll('.chips [aria-pressed=true]').length") == 1
    page.click(".chips [aria-pressed=true]")
    assert found(page) == "60 of 60"


@pytest.mark.parametrize(
    ("order", "first"), [("worst", {"r20", "r21"}), ("row", {"r0"}), ("long", {"r59"}), ("short", {"r0"})]
)
def test_an_order_puts_first_what_it_says(page, order, first):
    choose = "found.value = order; found.dispatchEvent(new Event('change'));"
    page.evaluate(f"((found, order) => {{ {choose} }})(document.querySelector('#tools select'), '{order}')")
    assert set(ids(page)[: len(first)]) == first


def test_more_are_shown_when_asked_for(page):
    assert len(ids(page)) == 20
    page.click("#more")
    page.click("#more")
    assert len(ids(page)) == 60 and page.evaluate("document.querySelector('#more').hidden")


def test_keys_go_to_the_search_and_from_case_to_case(page):
    page.press("/")
    assert page.evaluate("document.activeElement.id") == "words"
    page.type("answer 1")
    page.press("Escape")
    page.press("j")
    first = "document.activeElement.querySelector('h3').textContent"
    assert page.evaluate(first) == ids(page)[0]
    page.press("ArrowDown")
    assert page.evaluate(first) == ids(page)[1]
    page.press("ArrowUp")
    assert page.evaluate(first) == ids(page)[0]


def test_nothing_fits_is_said(page):
    page.click("#words")
    page.type("no such words")
    assert ids(page) == [] and found(page) == "0 of 60"
    assert "Nothing fits" in page.evaluate("document.querySelector('#cases').textContent")


@pytest.mark.parametrize("width", [390, 1200])
def test_a_page_is_no_wider_than_its_window(page, path, width):
    page.look(width)
    page.open(path)
    page.wait_for("!document.querySelector('#tools').hidden")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_only_japanese_is_said_to_be_japanese(page):
    page.click("#more")
    page.click("#more")
    texts = "[...document.querySelectorAll('.answer .text')]"
    found = page.evaluate(f"{texts}.filter((each) => each.lang).map((each) => [each.lang, each.textContent])")
    assert found == [["ja", JAPANESE]]


def test_it_can_be_printed(page):
    page.look(800, media="print")
    assert not page.evaluate("document.querySelector('#tools').checkVisibility()")
    assert page.ask("Page.printToPDF")["data"]
