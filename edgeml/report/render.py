"""A page as one HTML file: no network, no script, readable on a phone, in print, in light and dark."""

from __future__ import annotations

from importlib import resources

import jinja2
from markupsafe import Markup

from edgeml.report.parts import Page


def render(page: Page) -> str:
    """Return `page` as HTML; every text is escaped, only our own pictures and styles are not."""
    folder = resources.files("edgeml.report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["picture"] = Markup
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(page=page, style=Markup((folder / "style.css").read_text(encoding="utf-8")))
