"""HTML elements as nested calls. Every plain string is escaped, so no name from the data can become markup."""

from __future__ import annotations

import html

# Bytes that would steer the terminal of one who looks at the page's source; HTML forbids them.
_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "�")
VOID = frozenset({"br", "img", "link", "meta", "wbr"})


class Html(str):
    """Text that is markup already; `element` and `fragment` escape every other string."""

    __slots__ = ()


Child = str | None
Attribute = str | int | float | bool | None


def fragment(*children: Child) -> Html:
    """The children one after the other; None is left out."""
    return Html("".join(c if isinstance(c, Html) else _escaped(c) for c in children if c is not None))


def _escaped(text: str) -> str:
    return html.escape(text.translate(_CONTROLS))


def breakable(name: str) -> Html:
    """A name that may go to the next line after each underscore."""
    first, *rest = name.split("_")
    return fragment(first, *(fragment("_", element("wbr"), part) for part in rest))


def element(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """One element.

    Arguments:
        name: Tag.
        children: Markup (Html), or text to be escaped; None is left out.
        attributes: A trailing underscore is dropped (`class_`), others become hyphens (`aria_label`). True stands for
            an attribute without a value; None and False leave it out.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{_escaped(str(value))}"')
    start = f"<{name}{''.join(written)}>"
    return Html(start) if name in VOID else Html(f"{start}{fragment(*children)}</{name}>")
