"""Every estimator of scikit-learn converts exactly or is refused with a reason, as docs/support-sklearn.md says."""

import re
from pathlib import Path

import pytest

from tests.convert.estimators import VARIANTS, fitted, names, variant
from tests.convert.support import outcome_of

PAGE = Path(__file__).parents[2] / "docs" / "support-sklearn.md"
ROW = re.compile(r"^\| (?P<name>[^|]+) \| [^|]+ \| (?P<result>exact|refused) \| (?P<note>[^|]*)\|$", re.MULTILINE)
TOLD = {found["name"]: found for found in ROW.finditer(PAGE.read_text())}


LONG = ("QuantileTransformer",)  # half a minute


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in (*names(), *VARIANTS)]
)
def test_it_converts_exactly_or_is_refused_as_the_page_says(name):
    found = outcome_of(variant(name) if name in VARIANTS else fitted(name))
    assert name in TOLD, f"{name} is not on the page: write it anew"
    assert TOLD[name]["result"] == ("exact" if found.exact else "refused"), found
    assert found.exact or len(found.note) > 20  # a reason that a person can use


def test_the_page_lists_nothing_else():
    assert set(TOLD) == {*names(), *VARIANTS}
