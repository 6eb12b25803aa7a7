"""The page's Markdown: what no text may do to the page, however it was meant."""

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from support.browser import Server, connected, visitor

pytestmark = pytest.mark.browser

SHOW = """async (texts) => {
  const { Prose } = await import("/web/markdown.js");
  return texts.map((text) => {
    const root = document.createElement("div");
    document.body.append(root);
    const start = performance.now();
    new Prose(root).show(text);
    const shown = { ms: performance.now() - start, html: root.innerHTML, text: root.textContent };
    shown.tags = [...new Set([...root.querySelectorAll("*")].map((node) => node.localName))];
    shown.links = [...root.querySelectorAll("a")].map((link) => link.href);
    root.remove();
    return shown;
  });
}"""

GROW = """async (documents) => {
  const { Prose } = await import("/web/markdown.js");
  const differing = [];
  for (const pieces of documents) {
    const [grown, whole] = [document.createElement("div"), document.createElement("div")];
    const prose = new Prose(grown);
    let text = "";
    for (const piece of pieces) prose.show((text += piece), { growing: true });
    prose.show(text);
    new Prose(whole).show(text);
    if (grown.innerHTML !== whole.innerHTML) differing.push([text, grown.innerHTML, whole.innerHTML]);
  }
  return differing;
}"""

TAGS = re.compile(
    "a|blockquote|button|code|del|div|em|h[3-6]|hr|input|li|ol|p|path|pre|span|strong|svg|table|tbody|td|th|thead|tr|ul"
)
"""Everything that text may become."""

MANY = 10_000
NASTY = [
    "<script>alert(1)</script><img src=x onerror=alert(1)><iframe src=javascript:alert(1)>",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,x) [d](vbscript:x) [e](//evil.example)",
    "[f](<javascript:alert(1)>) [g](java\nscript:alert(1)) <javascript:alert(1)> [h](&#106;avascript:alert(1))",
    '![i](javascript:alert(1)) ![j](https://example.com/"onerror="alert(1)) [k](https://example.com "><script>")',
    "```<script>\nalert(1)\n",
    '```" onclick="alert(1)\nx\n```',
    *(mark * MANY for mark in "*_~`[]()<>#-+|&!\\ \n\t"),
    *(
        mark * MANY
        for mark in ("*a ", "**a_b ", "a**", "> ", "- ", "1. ", "![", "[a](", "](", "<a@", "`` ` ", "|-", "~~", "\\[")
    ),
    "https://" + "(" * MANY + ")" * MANY,
    "https://a.example/" * MANY,
    "[" * MANY + "a" + "](https://a.example)" * 100,
    "*" * 500 + "a" + "*" * 500,
    "**_" * MANY + "a" + "_**" * MANY,
    "\n".join("  " * depth + "- x" for depth in range(400)),
    "\n".join(">" * depth + " x" for depth in range(400)),
    "| a " * 500 + "|\n" + "|-" * 500 + "|\n" + "| b " * 500 + "|",
    "```\n" * MANY,
]


@pytest.fixture(scope="module")
def page(page_server: Server, browser: Browser) -> Iterator[Page]:
    """A page that no test leaves changed."""
    with visitor(browser) as visit:
        yield connected(visit(page_server.address))


def show(page: Page, *texts: str) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = page.evaluate(SHOW, list(texts))
    return shown


def html(page: Page, text: str) -> str:
    return str(show(page, text)[0]["html"])


def test_no_text_runs_leads_astray_or_hangs(page: Page) -> None:
    ran: list[str] = []
    page.on("dialog", lambda dialog: ran.append(dialog.message))
    for text, shown in zip(NASTY, show(page, *NASTY), strict=True):
        assert all(TAGS.fullmatch(tag) for tag in shown["tags"]), text[:80]
        assert all(link.startswith(("https://", "http://", "mailto:")) for link in shown["links"]), text[:80]
        assert shown["ms"] < 5_000, text[:80]
    assert ran == []


def test_a_text_that_grows_ends_as_what_it_would_have_been_at_once(page: Page) -> None:
    fragments = [
        *(
            "# ",
            "## T\n",
            "- ",
            "* ",
            "1. ",
            "2) ",
            "  ",
            "    ",
            "> ",
            "```",
            "```py\n",
            "~~~\n",
            "`",
            "``",
            "*",
            "**",
        ),
        *(
            "_",
            "~~",
            "[",
            "](https://a.example/x)",
            "![",
            "https://b.example/y.",
            "<https://c.example>",
            "| ",
            "|\n|-|-|\n",
        ),
        *(
            "|a|b|\n|:-|-:|\n",
            "---\n",
            "===\n",
            "\\",
            "&amp;",
            "<br>",
            "- [x] ",
            "\n",
            "\n",
            "\n\n",
            " ",
            "word",
            "two words",
        ),
    ]
    draw = random.Random(7)
    documents = [[draw.choice(fragments) for _ in range(draw.randint(1, 40))] for _ in range(600)]
    assert page.evaluate(GROW, documents) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a *b* **c** ***d*** ~~e~~",
            "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <del>e</del></p>",
        ),
        ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
        ("\\*not\\* &lt;b&gt; &copy; &nothing;", "<p>*not* &lt;b&gt; © &amp;nothing;</p>"),
        ("`` a`b `` `c", "<p><code>a`b</code> `c</p>"),
        ("one\ntwo  \nthree\\\nfour<br>five", "<p>one\ntwo\nthree\nfour\nfive</p>"),
        ("# One #\nTwo\n===\nThree\n---", '<h3 class="h1">One</h3><h3 class="h1">Two</h3><h4 class="h2">Three</h4>'),
        ("- a\n- b\n  1. c\n\n     d", "<ul><li>a</li><li>b<ol><li><p>c</p><p>d</p></li></ol></li></ul>"),
        ("3. a\n4. b\n\ntext", '<ol start="3"><li>a</li><li>b</li></ol><p>text</p>'),
        ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
        ("In the year\n1984. It was.", "<p>In the year\n1984. It was.</p>"),
        ("> a\nb\n> > c", "<blockquote><p>a\nb</p><blockquote><p>c</p></blockquote></blockquote>"),
        ("***", "<hr>"),
    ],
)
def test_it_reads_as_commonmark_does(page: Page, text: str, expected: str) -> None:
    assert html(page, text) == expected


def test_addresses_become_links_without_the_punctuation_around_them(page: Page) -> None:
    text = "See https://a.example/b_(c)?d=e. (https://f.example), <g@h.example>, **https://i.example**, xhttps://no.example"
    assert show(page, text)[0]["links"] == [
        "https://a.example/b_(c)?d=e",
        "https://f.example/",
        "mailto:g@h.example",
        "https://i.example/",
    ]


def test_an_image_is_a_link_and_is_not_loaded(page: Page) -> None:
    shown = show(page, "![a cat](https://example.com/cat.png)")[0]
    assert shown["links"] == ["https://example.com/cat.png"]
    assert shown["text"] == "a cat"
    assert "img" not in shown["tags"]


def test_code_that_is_being_written_grows_in_its_block(page: Page) -> None:
    kept = page.evaluate("""async () => {
      const { Prose } = await import("/web/markdown.js");
      const root = document.createElement("div");
      const prose = new Prose(root);
      prose.show("Look:\\n\\n```py\\nx = 1\\n", { growing: true });
      const [paragraph, code] = root.children;
      prose.show("Look:\\n\\n```py\\nx = 1\\ny = 2\\n``", { growing: true });
      return [root.children[0] === paragraph, root.children[1] === code, code.querySelector("code").textContent];
    }""")
    assert kept == [True, True, "x = 1\ny = 2"]


def test_what_is_bold_is_so_before_it_ends(page: Page) -> None:
    growing = page.evaluate("""async () => {
      const { Prose } = await import("/web/markdown.js");
      const root = document.createElement("div");
      const prose = new Prose(root);
      return ["A **bold", "A **bold** `co", "A **bold** `code`\\n\\n-", "A **bold** `code`\\n\\n- x"].map((text) => {
        prose.show(text, { growing: true });
        return root.innerHTML;
      });
    }""")
    assert growing == [
        "<p>A <strong>bold</strong></p>",
        "<p>A <strong>bold</strong> <code>co</code></p>",
        "<p>A <strong>bold</strong> <code>code</code></p>",
        "<p>A <strong>bold</strong> <code>code</code></p><ul><li>x</li></ul>",
    ]
