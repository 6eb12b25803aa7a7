"""The page, as a person with a browser finds it: the real server, headless Chromium, nothing in between."""

import re

import pytest
from playwright.sync_api import expect
from support.browser import (
    MARKDOWN,
    REFUSED,
    UNREACHABLE,
    Server,
    Visit,
    Wire,
    answers,
    connected,
    counted,
    facts,
    say,
    send,
    whole,
    words,
)

pytestmark = pytest.mark.browser


def test_a_message_gets_an_answer_that_arrives_bit_by_bit(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "count to 40")
    expect(answers(page)).to_contain_text("1 2 3")
    seen = words(page)
    assert counted(40).startswith(seen)
    assert seen != counted(40)
    whole(page)
    assert words(page) == counted(40)
    expect(page.locator(".said.user")).to_have_text("count to 40")


def test_an_answer_shows_its_route_and_its_times(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "Hello, Baton")
    whole(page)
    told = facts(page)
    expect(told).to_contain_text("scripted")
    expect(told).to_contain_text("the only one that can")
    for part in ("Deciding", "Waiting", "Writing", "Altogether"):
        expect(told).to_contain_text(re.compile(rf"{part}\s*(\d+ ms|\d+\.\d+ s)"))
    expect(told).to_contain_text(re.compile(r"\d+ read, \d+ written"))
    expect(told.locator(".split i")).to_have_count(3)


def test_an_example_starts_a_conversation(page_server: Server, visit: Visit) -> None:
    page = connected(visit(page_server.address))
    page.get_by_role("button", name="capital of France").click()
    whole(page)
    assert words(page) == "You said: What is the capital of France?"
    expect(page.locator("#empty")).to_be_hidden()


def test_shift_and_enter_start_a_line_and_enter_sends(page_server: Server, visit: Visit) -> None:
    page = connected(visit(page_server.address))
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(answers(page)).to_have_count(0)
    page.keyboard.press("Enter")
    whole(page)
    assert words(page) == "You said: one\ntwo"
    expect(page.locator("#input")).to_have_value("")


def test_markup_is_shown_and_not_obeyed(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "<img src=x onerror=alert(1)><b>bold</b>")
    whole(page)
    assert words(page) == "You said: <img src=x onerror=alert(1)><b>bold</b>"
    expect(page.locator("#log :is(img, b)")).to_have_count(0)


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_interrupts_an_answer_and_marks_it(page_server: Server, visit: Visit, how: str) -> None:
    page = visit(page_server.address)
    say(page, "count to 900")
    expect(answers(page)).to_contain_text("1 2 3")
    if how == "button":
        page.get_by_role("button", name="Stop", exact=True).click()
    else:
        page.keyboard.press("Escape")
    whole(page)
    expect(answers(page)).to_contain_text("Interrupted")
    assert counted(900).startswith(words(page))
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()
    say(page, "still there?")
    whole(page, 2)
    assert words(page) == "You said: still there?"


def test_a_reload_brings_the_conversation_back(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "Hello, Baton")
    whole(page)
    say(page, "count to 900")
    expect(answers(page).last).to_contain_text("1 2 3")
    page.keyboard.press("Escape")
    whole(page, 2)
    before = page.locator("#log").inner_text()
    page.reload()
    whole(page, 2)
    expect(answers(page).last).to_contain_text("Interrupted")
    expect(page.locator("#log")).to_have_text(before, use_inner_text=True)
    assert page.locator("#log").inner_text() == before


def test_a_reload_in_the_middle_of_an_answer_misses_nothing(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "count to 60")
    expect(answers(page)).to_contain_text("1 2 3")
    page.reload()
    whole(page)
    assert words(page) == counted(60)


def test_a_new_conversation_is_empty_and_back_returns_to_the_old_one(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "Hello, Baton")
    whole(page)
    first = page.url
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("heading", name="See who answers")).to_be_visible()
    connected(page)
    assert "#" not in page.url, "nothing was said yet that could be gone back to"
    page.go_back()
    whole(page)
    assert page.url == first
    assert words(page) == "You said: Hello, Baton"


def test_a_connection_lost_in_the_middle_of_an_answer_resumes_without_doubling_a_character(
    page_server: Server, visit: Visit
) -> None:
    wire = Wire(page_server.port)
    try:
        page = visit(wire.address, expects=UNREACHABLE)
        say(page, "count to 80")
        for seen in ("3", "25"):
            expect(answers(page)).to_contain_text(f" {seen} ")
            wire.cut()
        whole(page)
        assert words(page) == counted(80)
        expect(facts(page)).to_contain_text("Writing")
        expect(page.locator(".said")).to_have_count(1)
    finally:
        wire.close()


def test_a_killed_server_is_found_again_and_the_conversation_goes_on(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address, expects=UNREACHABLE)
    say(page, "Hello, Baton")
    whole(page)
    with page_server.killed():
        expect(page.get_by_text("Connection lost")).to_be_visible()
        page.locator("#input").fill("kept while nobody listens")
        page.keyboard.press("Enter")
    connected(page)
    expect(page.locator("#input")).to_have_value("kept while nobody listens")
    send(page)
    whole(page, 2)
    assert answers(page).locator(".body").all_text_contents() == [
        "You said: Hello, Baton",
        "You said: kept while nobody listens",
    ]
    expect(page.locator(".said")).to_have_count(2)


def test_an_answer_that_a_killed_server_left_is_marked_as_not_whole(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address, expects=UNREACHABLE)
    say(page, "count to 900")
    expect(answers(page)).to_contain_text("1 2 3")
    with page_server.killed():
        expect(page.get_by_text("Connection lost")).to_be_visible()
    whole(page)
    expect(answers(page)).to_contain_text("The server was restarted before this answer was whole.")


def test_a_message_that_cannot_be_sent_returns_to_the_input(page_server: Server, visit: Visit) -> None:
    page = connected(visit(page_server.address))
    text = "x" * 1_100_000
    page.evaluate("text => { document.getElementById('input').value = text; }", text)
    page.keyboard.press("Enter")
    # The server closes in the middle of so long a message; its reason may not outrun the broken connection.
    note = page.get_by_text(re.compile(r"^This message is too long|while this message was being sent\.$"))
    expect(note).to_be_visible()
    assert page.evaluate("document.getElementById('input').value.length") == len(text)
    expect(page.locator(".said")).to_have_count(0)
    page.get_by_role("button", name="Dismiss").click()
    expect(note).to_be_hidden()


def test_an_unknown_conversation_gives_way_to_a_new_one(page_server: Server, visit: Visit) -> None:
    page = visit(f"{page_server.address}#sess_nobody", expects=REFUSED)
    expect(page.get_by_text("That conversation is not known here")).to_be_visible()
    assert "sess_nobody" not in page.url
    say(page, "Hello, Baton")
    whole(page)


def test_a_server_with_keys_asks_for_one(own_server: Server, visit: Visit) -> None:
    key = own_server.make_key("acme")
    page = visit(own_server.address, expects=REFUSED)
    page.get_by_label("Key", exact=True).fill("not a key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("This key is not good here")).to_be_visible()
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")
    say(page, "Hello, Baton")
    whole(page)
    page.reload()
    whole(page)
    assert words(page) == "You said: Hello, Baton"


def test_it_works_on_a_phone(page_server: Server, visit: Visit) -> None:
    page = connected(visit(page_server.address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True))
    page.get_by_role("button", name="thank-you note").tap()
    whole(page)
    say(page, "word " * 400 + "m" * 400)
    whole(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_in_viewport()
    expect(answers(page).last.locator(".facts")).to_be_in_viewport()


def test_a_reader_who_has_scrolled_up_is_left_there(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address, viewport={"width": 800, "height": 500})
    say(page, "line\n" * 60)
    whole(page)
    say(page, "count to 900")
    expect(answers(page).last).to_contain_text("1 2 3")
    page.locator("#scroll").hover()
    page.mouse.wheel(0, -600)
    expect(page.get_by_role("button", name="Go to the latest message")).to_be_visible()
    place = page.evaluate("document.getElementById('scroll').scrollTop")
    expect(answers(page).last).to_contain_text("30 31")
    assert page.evaluate("document.getElementById('scroll').scrollTop") == place
    page.get_by_role("button", name="Go to the latest message").click()
    expect(answers(page).last.locator(".facts")).to_be_in_viewport()
    page.keyboard.press("Escape")
    whole(page, 2)


@pytest.mark.parametrize("how", ["button", "key"])
def test_a_message_is_edited_and_sent_again_in_its_place(page_server: Server, visit: Visit, how: str) -> None:
    page = visit(page_server.address)
    say(page, "first")
    whole(page)
    say(page, "second")
    whole(page, 2)
    if how == "button":
        page.locator(".said").last.hover()
        page.get_by_role("button", name="Edit and send again").last.click()
    else:
        page.keyboard.press("ArrowUp")
    page.locator(".said textarea").fill("changed")
    page.keyboard.press("Enter")
    expect(answers(page).last).to_contain_text("You said: changed")
    whole(page, 2)
    expect(page.locator(".said .words")).to_have_text(["first", "changed"])
    page.reload()
    expect(page.locator(".said .words")).to_have_text(["first", "changed"])
    whole(page, 2)
    assert words(page) == "You said: changed"


def test_an_earlier_message_is_edited_and_what_followed_it_goes(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    for number, text in enumerate(("first", "second", "third"), start=1):
        say(page, text)
        whole(page, number)
    page.locator(".said").nth(1).hover()
    page.get_by_role("button", name="Edit and send again").nth(1).click()
    page.locator(".said textarea").fill("instead")
    page.keyboard.press("Enter")
    expect(answers(page).last).to_contain_text("You said: instead")
    expect(page.locator(".said .words")).to_have_text(["first", "instead"])
    expect(answers(page)).to_have_count(2)


def test_an_edit_can_be_given_up(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "first")
    whole(page)
    page.keyboard.press("ArrowUp")
    page.locator(".said textarea").fill("changed")
    page.keyboard.press("Escape")
    expect(page.locator(".said .words")).to_have_text("first")
    expect(page.locator("#input")).to_be_focused()
    expect(answers(page)).to_have_count(1)


def test_an_interrupted_answer_is_given_anew(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "count to 30")
    expect(answers(page)).to_contain_text("1 2 3")
    page.keyboard.press("Escape")
    whole(page)
    expect(answers(page)).to_contain_text("Interrupted")
    page.get_by_role("button", name="Regenerate").click()
    expect(answers(page)).to_contain_text("29 30")
    whole(page)
    assert words(page) == counted(30)
    expect(page.locator(".ending")).to_have_count(0)
    expect(page.locator(".said")).to_have_count(1)


def test_an_answer_that_failed_says_why_and_is_given_anew(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "break down")
    whole(page)
    expect(answers(page)).to_contain_text("Failed. The script ended in a fault, as it says.")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator("[data-running]")).to_have_count(0)
    whole(page)
    expect(answers(page)).to_contain_text("Failed.")


def test_another_tab_follows_what_is_edited(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address)
    say(page, "first")
    whole(page)
    other = visit(page.url)
    whole(other)
    page.keyboard.press("ArrowUp")
    page.locator(".said textarea").fill("changed")
    page.keyboard.press("Enter")
    expect(answers(other)).to_contain_text("You said: changed")
    expect(other.locator(".said .words")).to_have_text("changed")


def test_markdown_is_shown_as_what_it_means(page_server: Server, visit: Visit) -> None:
    page = visit(page_server.address, permissions=["clipboard-read", "clipboard-write"])
    say(page, "show markdown")
    whole(page)
    body = answers(page).locator(".body")
    expect(body.get_by_role("heading", name="Primes")).to_be_visible()
    expect(body.get_by_role("link", name="the article")).to_have_attribute("href", "https://example.com/sieve")
    expect(body.get_by_role("link", name="the article")).to_have_attribute("rel", "noopener noreferrer")
    expect(body.locator(".code .bar")).to_have_text("python")
    expect(body.get_by_role("columnheader")).to_have_text(["n", "prime"])
    expect(body.locator("ol > li > ul > li")).to_have_text("nested")
    expect(body.get_by_role("checkbox")).to_have_count(2)
    expect(body.locator("blockquote del")).to_have_text("struck")
    page.get_by_role("button", name="Copy code").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("def primes(limit):\n    return [n")
    answers(page).get_by_role("button", name="Copy", exact=True).click()
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN
