"""HTML and SVG as text in which nothing that came from outside can become markup."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_VOID = frozenset({"meta", "br", "input", "hr"})


class Markup(str):
    """Text that is markup already; any other text is escaped."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element with its children.

    Args:
        name: of the element.
        children: `Markup` goes in as it is, everything else as escaped text; None is left out.
        attributes: escaped; `class_` is `class`, `stroke_width` is `stroke-width`. None and False leave it out,
            True gives it without a value.
    """
    given = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """Children one after the other; see `tag`."""
    return Markup("".join(_child(child) for child in children if child is not None))


def _child(child: object) -> str:
    return child if isinstance(child, Markup) else html.escape(printable(str(child)))


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{html.escape(_number(value) if isinstance(value, float) else printable(str(value)))}"'


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def printable(text: str) -> str:
    """Text without the bytes of file names that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: ASCII, and without a sign that could end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
