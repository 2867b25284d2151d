"""Every recipe that was asked for, one after the other, until they are done or somebody stops them."""

from __future__ import annotations

from collections.abc import Sequence

from edgeml import graph
from edgeml.artifacts import FP32, OnnxModel, Rows, Skipped, Variant
from edgeml.errors import UnsupportedModel
from edgeml.quantize import prepare, static
from edgeml.quantize.recipe import Options, Recipe, Stopped, enough
from edgeml.quantize.table import AUTO, recipes_for
from edgeml_runtime.wire import DeviceError

STOPPED = "stopped by Ctrl-C"
DEFAULTS = Options()


def quantize(
    model: OnnxModel, calibration: Rows, precisions: Sequence[str], /, options: Options = DEFAULTS
) -> list[Variant | Skipped]:
    """Return the fp32 variant and, for every other recipe in `precisions`, its variants or why there are none.

    Ctrl-C during a search ends it: what is made is returned, the rest is Skipped. Without any rows the recipes that
    need none do their work. Raises DataError when there are too few for a model that can be quantized, or when rows
    make it answer NaN.
    """
    made: list[Variant | Skipped] = [Variant(model, FP32, model.digest)]
    proto = graph.load(model)
    waiting = recipes_for(precisions, proto)
    if AUTO in precisions and not recipes_for([AUTO], proto):
        made.append(Skipped(AUTO, prepare.without_products(proto) or "no recipe suits this graph: it ships as fp32"))
    try:
        while waiting:
            options.progress(waiting[0].name)
            made += _one(model, calibration, (waiting[0], options))
            waiting.pop(0)
    except Stopped as stop:
        options.progress(f"{waiting[0].name} {STOPPED}: going on with what was found")
        rest = waiting[1:] if stop.kept else waiting
        made += [*stop.kept, *(Skipped(recipe.name, STOPPED) for recipe in rest)]
    finally:
        prepare.forget()
        static.forget()
    return _without_twins(made)


def _one(model: OnnxModel, calibration: Rows, how: tuple[Recipe, Options]) -> list[Variant | Skipped]:
    recipe, options = how
    try:
        given = recipe.takes_ranges and options.field is not None
        if recipe.min_rows and not given and not prepare.without_products(graph.load(model)):
            if not len(calibration):
                raise UnsupportedModel(f"needs calibration rows, and there are none: give {recipe.min_rows} or more")
            enough(calibration, recipe.name)
        made = recipe.make(model, calibration, options)
    except (UnsupportedModel, DeviceError) as error:
        return [Skipped(recipe.name, str(error))]
    return made if isinstance(made, list) else [made]


def _without_twins(made: list[Variant | Skipped]) -> list[Variant | Skipped]:
    """Return the list with every variant whose graph an earlier recipe made turned into a Skipped that names it."""
    first: dict[str, str] = {}
    kept: list[Variant | Skipped] = []
    for item in made:
        name = first.setdefault(item.model.digest, item.recipe) if isinstance(item, Variant) else item.recipe
        twin = isinstance(item, Variant) and name != item.recipe
        kept.append(Skipped(item.recipe, f"makes the same graph as {name}, which is kept") if twin else item)
    return kept
