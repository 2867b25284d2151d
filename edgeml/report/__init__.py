"""The reports: one HTML file with everything in it, the verdict first.

    summary (plain JSON), fleet's story -build_page-> Page
    document of `edgeml bench -o` -bench_page-> Page
    two of either -compare_page-> Page
    document of `edgeml federate` -federation_page-> Page
    Page -render-> HTML;  document -tabulate-> CSV

They are drawn from the documents alone, so an old run can be reported again without its artifacts.
"""

from edgeml.report.compare import CONDITIONS, compare_page, ratio95
from edgeml.report.federation import federation_page
from edgeml.report.page import bench_page, build_page
from edgeml.report.parts import Page
from edgeml.report.reading import is_bench
from edgeml.report.render import render
from edgeml.report.tabulate import differences, tabulate

__all__ = [
    "CONDITIONS",
    "Page",
    "bench_page",
    "build_page",
    "compare_page",
    "differences",
    "federation_page",
    "is_bench",
    "ratio95",
    "render",
    "tabulate",
]
