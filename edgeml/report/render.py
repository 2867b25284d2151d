"""A page as one HTML file: no network, readable on a phone, in print, in light and dark, and without its script."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from edgeml.report.charts import CONFIG
from edgeml.report.parts import Page
from edgeml.report.vega import vega


def render(page: Page) -> str:
    """Return `page` as HTML; every text is escaped, only our own script and styles are not."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["inline"] = inline_json
    environment.filters["slug"] = slug
    drawn = any(section.figures for section in page.sections)
    return environment.from_string(_file("page.html")).render(
        page=page,
        style=Markup(_file("style.css")),
        config=CONFIG,
        script=Markup(_script()) if drawn else Markup(""),
    )


def inline_json(value: Any) -> Markup:
    """Return `value` as JSON that cannot end the script element it stands in.

    >>> inline_json({"name": "</script>"})
    Markup('{"name":"\\\\u003c/script>"}')
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def slug(title: str) -> str:
    """Return `title` as the name of an anchor.

    >>> slug("Refused, and why")
    'refused-and-why'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


@functools.cache
def _script() -> str:
    return f"{vega()}\n{_file('page.js')}"


def _file(name: str) -> str:
    return (resources.files("edgeml.report") / name).read_text(encoding="utf-8")
