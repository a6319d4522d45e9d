"""Every public name says what it takes and gives: shapes, units, errors, and an example (which test_structure runs)."""

import dataclasses
import importlib
import inspect
import re

import pytest

#: Modules whose ``__all__`` is what users hold in their hands.
PUBLIC = (
    "hpe_fast",
    "hpe_fast.data.converters",
    "hpe_fast.data.loader",
    "hpe_fast.data.store",
    "hpe_fast.evaluate",
    "hpe_fast.metrics",
    "hpe_fast.models",
    "hpe_fast.ops",
    "hpe_fast.pipeline",
    "hpe_fast.plots",
    "hpe_fast.predict",
    "hpe_fast.synthetic",
    "hpe_fast.training",
)
#: Arguments that are quantities, and how a docstring may say their unit.
QUANTITIES = {
    "boxes": r"px|pixel",
    "joints3d": r"mm",
    "keypoints": r"px|pixel|unit|crop",
    "mean_pose": r"mm",
    "pose3d": r"mm",
    "true3d": r"mm",
}
#: Annotations of values that have a shape.
ARRAYS = re.compile(r"\b(Tensor|Array|ndarray)\b")


def public():
    """Each public object once, under its first name."""
    found = {}
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                found.setdefault(id(value), (f"{module_name}.{name}", value))
    return dict(found.values())


OBJECTS = public()
FUNCTIONS = {name: value for name, value in OBJECTS.items() if inspect.isfunction(value)}


def is_exception(value):
    return isinstance(value, type) and issubclass(value, BaseException)


def test_the_list_is_of_this_package():
    assert len(OBJECTS) > 60
    assert all(value.__module__.startswith("hpe_fast") for value in OBJECTS.values())


@pytest.mark.parametrize("name", OBJECTS)
def test_every_public_name_has_a_docstring_of_its_own_with_an_example(name):
    value = OBJECTS[name]
    text = value.__dict__.get("__doc__") if isinstance(value, type) else value.__doc__
    assert text
    assert not text.startswith(f"{value.__name__}("), "this is what dataclass writes where nothing was written"
    if not is_exception(value):
        assert ">>> " in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_raise_say_so(name):
    function = inspect.unwrap(FUNCTIONS[name])
    if re.search(r"^\s+raise\b", inspect.getsource(function), re.MULTILINE):
        assert "Raises:" in function.__doc__ or "raise" in function.__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_arrays_say_shapes_and_units(name):
    function = inspect.unwrap(FUNCTIONS[name])
    parameters = inspect.signature(function).parameters.values()
    text = function.__doc__.partition("Example:")[0]
    if any(ARRAYS.search(str(parameter.annotation)) for parameter in parameters):
        assert re.search(r"\[[\w., '\-]*\]", text), "no shape"
    for parameter in parameters:
        if parameter.name in QUANTITIES and ARRAYS.search(str(parameter.annotation)):
            assert re.search(QUANTITIES[parameter.name], text), f"no unit of {parameter.name}"


@pytest.mark.parametrize("name", [name for name, value in OBJECTS.items() if dataclasses.is_dataclass(value)])
def test_array_fields_of_dataclasses_say_shapes(name):
    source = inspect.getsource(OBJECTS[name])
    for field in dataclasses.fields(OBJECTS[name]):
        if ARRAYS.search(str(field.type)):
            said = re.search(rf'^    {field.name}: .*\n    """.*\[', source, re.MULTILINE)
            assert said or re.search(rf"\b{field.name}: .*\[", OBJECTS[name].__doc__), field.name
