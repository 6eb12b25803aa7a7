"""Around the page's conversation: the side bar, the model, the instructions, light and dark, loading, the keyboard."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect
from support.browser import LOADING, Server, Visit, answers, connected, say, whole, words

pytestmark = pytest.mark.browser


def entry(page: Page, title: str) -> Locator:
    """Return the conversation of this title in the side bar."""
    return page.locator("#sessions li").filter(has=page.get_by_role("link", name=title, exact=True))


def choose(page: Page, title: str, action: str) -> None:
    """Choose from a conversation's menu."""
    entry(page, title).hover()
    entry(page, title).get_by_role("button", name="More about").click()
    page.get_by_role("menuitem", name=action).click()


def talk(page: Page, text: str) -> None:
    """Say something and wait for the answer."""
    count = answers(page).count()
    say(page, text)
    whole(page, count + 1)


# The side bar


def test_a_conversation_is_named_after_its_first_message_and_found_again(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    talk(page, "words for a card")
    expect(page.get_by_role("heading", level=1)).to_have_text("words for a card")
    expect(page).to_have_title("words for a card · Baton")
    page.keyboard.press("Control+Shift+O")
    expect(page.get_by_role("heading", level=1)).to_have_text("New conversation")
    talk(page, "bread without yeast")
    expect(page.locator("#sessions [aria-current]")).to_have_text("bread without yeast")
    expect(page.locator("#sessions h3").first).to_have_text("Today")
    page.reload()
    expect(page.locator("#sessions li").first).to_contain_text("bread without yeast")
    entry(page, "words for a card").get_by_role("link").click()
    whole(page)
    assert words(page) == "You said: words for a card"
    expect(page.locator("#sessions [aria-current]")).to_have_text("words for a card")


def test_a_conversation_is_renamed_in_place_and_keeps_its_name(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    talk(page, "a name to change")
    other = visit(page.url)
    choose(page, "a name to change", "Rename")
    page.get_by_label("Title", exact=True).fill("Changed")
    page.keyboard.press("Enter")
    for tab in (page, other):
        expect(tab.get_by_role("heading", level=1)).to_have_text("Changed")
        expect(entry(tab, "Changed")).to_have_count(1)
    page.keyboard.press("F2")
    page.keyboard.type("given up")
    page.keyboard.press("Escape")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Changed")
    expect(entry(page, "Changed")).to_have_count(1)


def test_a_conversation_is_deleted_once_that_is_confirmed(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    talk(page, "not for long")
    choose(page, "not for long", "Delete")
    expect(page.get_by_role("alertdialog")).to_contain_text("“not for long” and all its messages go for good.")
    page.get_by_role("button", name="Cancel").click()
    expect(entry(page, "not for long")).to_have_count(1)
    choose(page, "not for long", "Delete")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(entry(page, "not for long")).to_have_count(0)
    expect(page.get_by_role("heading", name="See who answers")).to_be_visible()
    page.reload()
    connected(page)
    expect(entry(page, "not for long")).to_have_count(0)


def test_a_conversation_is_downloaded(page_server: Server, visit: Visit, tmp_path: Path) -> None:
    page = visit(page_server.address)
    talk(page, "something to keep")
    texts = []
    for action in ("Export as Markdown", "Export as JSON"):
        with page.expect_download() as download:
            choose(page, "something to keep", action)
        download.value.save_as(tmp_path / "download")
        texts.append((tmp_path / "download").read_text())
    assert "You said: something to keep" in texts[0]
    assert [item["role"] for item in json.loads(texts[1])["items"]] == ["user", "assistant"]


def test_a_search_leaves_what_has_the_words_in_its_title(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    for text in ("the garden in May", "the garden in June"):
        talk(page, text)
        page.keyboard.press("Control+Shift+O")
    page.locator("#scroll").focus()
    page.keyboard.press("/")
    page.keyboard.type("IN MAY")
    expect(page.locator("#sessions li")).to_have_text("the garden in May")
    page.keyboard.type("be")
    expect(page.locator("#sessions")).to_contain_text("No conversation has this in its title.")
    page.keyboard.press("Escape")
    expect(entry(page, "the garden in June")).to_have_count(1)


# What holds for a conversation


def test_a_model_is_chosen_for_one_conversation(page_server: Server, visit: Visit) -> None:
    page = connected(visit(page_server.address))
    picker = page.get_by_role("button", name="Model:")
    expect(picker).to_have_text("Automatic")
    picker.click()
    expect(page.get_by_role("menuitemradio", name="Automatic")).to_have_attribute("aria-checked", "true")
    page.get_by_role("menuitemradio", name="scripted").click()
    expect(picker).to_have_text("scripted")
    talk(page, "with a model of my choice")
    expect(picker).to_have_text("scripted")
    page.reload()
    expect(picker).to_have_text("scripted")
    page.get_by_role("button", name="New conversation").click()
    expect(picker).to_have_text("Automatic")


@pytest.mark.parametrize("when", ["before", "after"])
def test_instructions_are_kept_with_the_conversation(page_server: Server, visit: Visit, when: str) -> None:
    page = connected(visit(page_server.address))
    if when == "after":
        talk(page, "hello")
    page.get_by_role("button", name="Instructions").click()
    page.get_by_role("textbox", name="Instructions").fill("Be brief.")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#settings-open")).to_have_attribute("data-set", "")
    if when == "before":
        talk(page, "hello")
    page.reload()
    expect(page.locator("#settings-open")).to_have_attribute("data-set", "")
    page.get_by_role("button", name="Instructions").click()
    expect(page.get_by_role("textbox", name="Instructions")).to_have_value("Be brief.")
    page.get_by_role("textbox", name="Instructions").fill("Not kept.")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Instructions").click()
    expect(page.get_by_role("textbox", name="Instructions")).to_have_value("Be brief.")


# Light and dark, keyboard, phone


def test_it_follows_the_system_until_told_otherwise(page_server: Server, visit: Visit) -> None:
    page = connected(visit(page_server.address, color_scheme="dark"))
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(19, 21, 23)"
    page.emulate_media(color_scheme="light")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    assert page.evaluate(ground) == "rgb(251, 250, 247)"
    page.get_by_role("button", name="Use dark colours").click()
    assert page.evaluate(ground) == "rgb(19, 21, 23)"
    page.reload()
    assert page.evaluate(ground) == "rgb(19, 21, 23)"
    page.get_by_role("button", name="Use light colours").click()
    page.emulate_media(color_scheme="dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_the_keyboard_is_enough(page_server: Server, visit: Visit) -> None:
    page = connected(visit(page_server.address))
    expect(page.locator("#input")).to_be_focused()
    page.keyboard.type("a question?/")
    expect(page.locator("#input")).to_have_value("a question?/")
    page.keyboard.press("Control+K")
    expect(page.get_by_label("Search conversations")).to_be_focused()
    page.locator("#scroll").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Model:").press("Enter")
    expect(page.get_by_role("menuitemradio", name="Automatic")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Model:")).to_have_text("scripted")
    expect(page.get_by_role("button", name="Model:")).to_be_focused()


def test_on_a_phone_the_side_bar_is_a_drawer(page_server: Server, visit: Visit) -> None:
    page = connected(visit(page_server.address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True))
    talk(page, "from the phone")
    side = page.get_by_role("complementary", name="Conversations")
    expect(side).to_be_hidden()
    page.get_by_role("button", name="Open the side bar").tap()
    expect(side).to_be_visible()
    page.keyboard.press("Escape")
    expect(side).to_be_hidden()
    page.get_by_role("button", name="Open the side bar").tap()
    side.get_by_role("button", name="New conversation").tap()
    expect(side).to_be_hidden()
    expect(page.get_by_role("heading", name="See who answers")).to_be_visible()
    page.get_by_role("button", name="Open the side bar").tap()
    entry(page, "from the phone").get_by_role("link").tap()
    expect(side).to_be_hidden()
    whole(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


# Loading


def standing(state: str, **fields: Any) -> dict[str, Any]:
    return {"id": "smollm2-135m", "state": state, "done_bytes": 0, "total_bytes": None, "message": None, **fields}


def test_a_model_that_is_loading_shows_how_far_it_is_and_a_message_can_wait(page_server: Server, visit: Visit) -> None:
    told = [standing("fetching", done_bytes=41_000_000, total_bytes=98_362_432)]

    def answer(route: Route) -> None:
        status = told[0]["state"] if told[0]["state"] in {"ready", "failed"} else "loading"
        route.fulfill(status=200 if status == "ready" else 503, json={"status": status, "models": told})

    page = visit("about:blank", expects=LOADING)
    page.route("**/readyz", answer)
    page.goto(page_server.address)
    loading = page.get_by_role("region", name="Getting ready to answer")
    expect(loading).to_contain_text("Downloading, 41 MB of 98 MB")
    expect(loading.get_by_role("progressbar")).to_have_js_property("value", 41_000_000 / 98_362_432)
    page.locator("#input").fill("early")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    expect(page.locator("#input")).to_have_value("early")
    told[0] = standing("converting")
    expect(loading).to_contain_text("Preparing it for this machine")
    told[0] = standing("ready")
    expect(page.locator("#loading")).to_be_hidden()
    expect(page.locator("#input")).to_have_value("early")
    page.keyboard.press("Enter")
    whole(page)
    assert words(page) == "You said: early"


def test_a_model_that_cannot_be_loaded_says_why(page_server: Server, visit: Visit) -> None:
    page = visit("about:blank", expects=LOADING)
    failed = standing("failed", message="smollm2-135m: no network. Connect, then start again.")
    page.route("**/readyz", lambda route: route.fulfill(status=503, json={"status": "failed", "models": [failed]}))
    page.goto(page_server.address)
    expect(page.get_by_role("region", name="No model could be started")).to_contain_text("no network. Connect")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()


def test_every_file_of_the_page_is_allowed_by_its_own_policy(page_server: Server, visit: Visit) -> None:
    page = connected(visit(page_server.address))
    assert page.locator("style, [style]:not(:is(#input, .split i))").count() == 0
    assert page.locator("script:not([src])").count() == 0
    policy = page.locator("meta[http-equiv='Content-Security-Policy']").get_attribute("content") or ""
    assert "unsafe" not in policy
    assert re.match(r"default-src 'self';", policy)
