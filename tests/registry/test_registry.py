"""Registries: names of classes, classes of users, and entry points of installed packages."""

from importlib.metadata import EntryPoint
from typing import Annotated, Any, Literal

import pytest
from language import problems_of
from pydantic import TypeAdapter, ValidationError

import salf
from salf.errors import InvalidSetting
from salf.registry import Choice, ExtensionWarning, Registry, registry as registries
from salf.values import Positive, validated


@validated
class Shape:
    name: str


@validated
class Circle(Shape):
    name: Literal["circle"] = "circle"
    radius: Positive = 1.0


@validated
class Square(Shape):
    name: Literal["square"] = "square"


class Undecorated(Shape):
    name: Literal["undecorated"] = "undecorated"
    side: Positive = 2.0


@validated
class Nameless(Shape):
    pass


@validated
class All(Shape):
    name: Literal["all"] = "all"


@validated
class SecondCircle(Shape):
    name: Literal["circle"] = "circle"


class Loud:
    """Nothing that can be registered."""


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Registry[Shape]:
    monkeypatch.setattr(registries, "entry_points", installed)
    return Registry((Shape,), (Circle,), what="shape", tag="name", group="test.shapes")


def installed(group: str) -> list[EntryPoint]:
    assert group == "test.shapes"
    here = __name__
    return [
        EntryPoint("square", f"{here}:Square", group),
        EntryPoint("gone", f"{here}:Gone", group),
        EntryPoint("loud", f"{here}:Loud", group),
        EntryPoint("other", f"{here}:Undecorated", group),
    ]


def refusal(shapes: Registry[Shape], cls: type) -> str:
    with pytest.raises(InvalidSetting) as caught:
        shapes.register(cls)
    assert problems_of(str(caught.value)) == []
    return str(caught.value)


def test_a_class_is_registered_once_under_its_name(shapes: Registry[Shape]) -> None:
    assert shapes.register(Square) is Square
    assert shapes.register(Square) is Square
    assert shapes["square"] is Square
    assert refusal(shapes, SecondCircle).startswith(
        f"{__name__}:SecondCircle has the name 'circle' of {__name__}:Circle"
    )


def test_a_class_without_decorator_becomes_a_validated_dataclass(shapes: Registry[Shape]) -> None:
    assert shapes.register(Undecorated)(name="undecorated") == Undecorated(name="undecorated")
    with pytest.raises(InvalidSetting, match=r"^Undecorated\.side is -1; choose a number greater than 0$"):
        Undecorated(name="undecorated", side=-1)  # type: ignore[call-arg]  # mypy sees no decorator
    with pytest.raises(InvalidSetting, match="Undecorated has no setting 'colour'; rename or remove it"):
        Undecorated(name="undecorated", colour="red")  # type: ignore[call-arg]  # as above


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Loud, "is not a shape; make it a subclass of"),
        (Nameless, "has no name"),
        (All, "has the name 'all'; add a field"),
    ],
)
def test_what_cannot_be_registered_is_refused(shapes: Registry[Shape], cls: type, message: str) -> None:
    assert message in refusal(shapes, cls)


def test_broken_entry_points_are_reported_and_the_others_work(shapes: Registry[Shape]) -> None:
    assert shapes["circle"] is Circle  # known, so nothing is imported
    with pytest.warns(ExtensionWarning) as warnings:
        assert shapes["square"] is Square
    told = [str(warning.message) for warning in warnings]
    assert [message.split("'")[1] for message in told] == ["gone", "loud", "other"]
    assert "AttributeError" in told[0]
    assert "is not a shape" in told[1]
    assert "its name is 'undecorated'" in told[2]
    assert list(shapes) == ["circle", "square"]  # the warning comes once


@pytest.mark.filterwarnings("ignore::salf.registry.ExtensionWarning")
def test_names_are_listed_with_the_built_in_ones_first(shapes: Registry[Shape]) -> None:
    shapes.register(Undecorated)
    assert list(shapes) == ["circle", "undecorated", "square"]
    assert len(shapes) == 3
    with pytest.raises(KeyError):
        shapes["triangle"]


@pytest.mark.filterwarnings("ignore::salf.registry.ExtensionWarning")
def test_where_a_value_comes_from(shapes: Registry[Shape]) -> None:
    class Own(Circle):
        pass

    shapes.register(Undecorated)
    assert list(shapes)
    assert [shapes.origin(value) for value in (Circle(radius=3.0), Square())] == ["", ""]
    assert shapes.origin(Own()) == f"was given in Python: {shapes.name_of(Own())}"
    assert shapes.origin(Undecorated(name="undecorated")) == f"is registered in Python: {__name__}:Undecorated"
    assert shapes.name_of(Own()).endswith(":test_where_a_value_comes_from.<locals>.Own")


@pytest.mark.filterwarnings("ignore::salf.registry.ExtensionWarning")
def test_a_field_takes_tables_names_and_values(shapes: Registry[Shape]) -> None:
    field: TypeAdapter[Any] = TypeAdapter(Annotated[Shape, Choice(shapes, brief=True)])
    assert field.validate_python({"name": "circle", "radius": 2}) == Circle(radius=2.0)
    assert field.validate_json('{"name": "circle", "radius": 2}', strict=True) == Circle(radius=2.0)
    assert field.validate_python("square") == Square()
    own = type("Own", (Circle,), {})()
    assert field.validate_python(own) is own
    assert field.validate_python("given:0", context={"given:0": own}) is own
    assert field.dump_python(Circle(radius=2.0), mode="json") == {"name": "circle", "radius": 2.0}
    for wrong in (3, {"radius": 2}, "triangle", {"name": 7}, {"name": "circle", "radius": 0}):
        with pytest.raises(ValidationError):
            field.validate_python(wrong)


@pytest.mark.parametrize("given", [None, 3, "x", [], salf.aggregate, salf.Contributors()])
def test_only_classes_can_be_registered(given: object) -> None:
    with pytest.raises(salf.InvalidSetting, match=r"is no method, rule or device model; make it a subclass of one of"):
        salf.register(given)  # type: ignore[type-var]
