"""The report of a run: one HTML file with everything in it, the verdict first.

    summary (plain JSON), fleet's story -build_page-> Page -render-> HTML

It is drawn from the summary alone, so an old run can be reported again without its artifacts.
"""

from edgeml.report.page import build_page
from edgeml.report.parts import Page
from edgeml.report.render import render

__all__ = ["Page", "build_page", "render"]
