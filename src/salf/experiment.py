"""An experiment: everything that determines a run, as one validated value that is read from and written to TOML.

Files hold differences from the defaults. Presets are such files, installed with the package.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from salf.data import NAMES
from salf.devices import AnyDevices, UniformDepth
from salf.engines import Optimisation
from salf.errors import InvalidSetting
from salf.methods import METHODS, AnyMethod, Salf
from salf.models import Cnn, Model

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(ge=1, strict=True)]


def _is_known_data(name: object) -> object:
    if name not in (*NAMES, "tensors"):
        raise ValueError(f"there is no data set '{name}'; known are {', '.join(NAMES)}")
    return name


@validated(frozen=True, kw_only=True, config=_STRICT)
class DataSettings:
    """Which data, and how it is divided among how many clients.

    `name` is one of `salf.data.NAMES`, or "tensors" for data given in Python; `root` the folder with its files (None:
    fetched once to the user's cache). `alpha` belongs to `partition="dirichlet"`, `shards_per_client` to "shards",
    `size_sigma`, the log-normal spread of client sizes, to "iid" and "label-order".
    """

    name: Annotated[str, BeforeValidator(_is_known_data)] = "digits"
    root: Path | None = None
    clients: Count = 30
    partition: Literal["iid", "shards", "dirichlet", "label-order"] = "iid"
    alpha: Annotated[float, Field(gt=0)] = 0.5
    shards_per_client: Count = 2
    size_sigma: Annotated[float, Field(ge=0)] = 0.0


@validated(frozen=True, kw_only=True, config=_STRICT)
class ClientSettings(Optimisation):
    """What a client does in a round: `local_steps` optimizer steps on batches of `batch_size` of its own examples.

    `cohort` clients are asked in each round, drawn without replacement; None asks all.
    """

    batch_size: Count = 16
    local_steps: Count = 1
    cohort: Count | None = None


@validated(frozen=True, kw_only=True, config=_STRICT)
class EvaluateSettings:
    """When the global model is tested: after `every` that many rounds, and after the last.

    `target` is the accuracy whose virtual time `salf compare` reports.
    """

    every: Count = 10
    target: Annotated[float, Field(gt=0, le=1)] | None = None


@validated(frozen=True, kw_only=True, config=_STRICT)
class Expected:
    """The final test accuracy that a method was measured to reach: the mean over seeds, and how far runs may differ."""

    accuracy: Annotated[float, Field(ge=0, le=1)]
    tolerance: Annotated[float, Field(gt=0, le=1)]


@validated(frozen=True, kw_only=True, config=_STRICT)
class Experiment:
    """Everything that determines a run; two runs of equal experiments on one machine give the same bytes.

    >>> experiment = Experiment.load("digits", **{"rounds": 20, "data.clients": 10})
    >>> experiment.rounds, experiment.data.clients, experiment.method.name
    (20, 10, 'salf')
    """

    name: Annotated[str, Field(min_length=1)] = "experiment"
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    rounds: Count = 100
    data: DataSettings = Field(default_factory=DataSettings)
    model: Model = Field(default_factory=Cnn)
    client: ClientSettings = Field(default_factory=ClientSettings)
    devices: AnyDevices = Field(default_factory=UniformDepth)
    method: AnyMethod = Field(default_factory=Salf)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    expected: dict[str, Expected] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.client.cohort is not None and self.client.cohort > self.data.clients:
            raise ValueError(f"client.cohort is {self.client.cohort}, more than data.clients = {self.data.clients}")

    @classmethod
    def load(cls, path_or_preset: str | Path, **dotted_overrides: object) -> "Experiment":
        """Read a TOML file, or the preset of that name, and override single settings by their dotted names.

        Raises `InvalidSetting`, which names the key, the file and the remedy.
        """
        text, origin = _read(path_or_preset)
        try:
            settings: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidSetting(f"{origin} is not valid TOML: {error}") from error
        settings.setdefault("name", Path(path_or_preset).stem)
        for key, value in dotted_overrides.items():
            _override(settings, key, value)
        return cls.parse(settings, origin)

    @classmethod
    def parse(cls, settings: Mapping[str, object], origin: str) -> "Experiment":
        """Validate settings nested as in a file. `origin` says where they come from, for the error's sake."""
        settings = {**settings, **_complete(settings)}
        try:
            return _adapter().validate_python(settings)
        except ValidationError as error:
            problems = [_describe(problem, settings) for problem in error.errors()]
            raise InvalidSetting(f"{origin}: " + "; ".join(problems)) from error

    def with_method(self, name: str) -> "Experiment":
        """Return the same experiment by another method, which keeps those of the method's settings that it knows."""
        if name not in METHODS:
            raise InvalidSetting(
                f"there is no method '{name}'{_suggest(name, METHODS)}; known are {', '.join(METHODS)}"
            )
        if name == self.method.name:
            return self
        known = {field.name for field in fields(METHODS[name])} - {"name"}
        kept = {field.name: getattr(self.method, field.name) for field in fields(self.method) if field.name in known}
        return replace(self, method=METHODS[name](**kept))

    def to_toml(self) -> str:
        """Return the complete experiment as TOML.

        >>> again = Experiment.parse(tomllib.loads(Experiment(rounds=7).to_toml()), "here")
        >>> again == Experiment(rounds=7)
        True
        """
        return tomli_w.dumps(_adapter().dump_python(self, mode="json", exclude_none=True))


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets that are installed with the package."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in _presets().iterdir()))


def _presets() -> Any:  # noqa: ANN401 - importlib.resources' own type of folder
    return files("salf") / "experiments"


def _adapter() -> TypeAdapter[Experiment]:
    return TypeAdapter(Experiment)


def _read(path_or_preset: str | Path) -> tuple[str, str]:
    """Return a file's or preset's text, and what to call it in an error."""
    path = Path(path_or_preset)
    if isinstance(path_or_preset, str) and path_or_preset in preset_names():
        return (_presets() / f"{path_or_preset}.toml").read_text(encoding="utf-8"), f"preset '{path_or_preset}'"
    if path.suffix != ".toml" and not path.exists():
        names = preset_names()
        raise InvalidSetting(
            f"there is no preset '{path_or_preset}'{_suggest(str(path_or_preset), names)}; "
            f"known are {', '.join(names)}, or give the path of a .toml file"
        )
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidSetting(f"cannot read the experiment file {path}: {reason}") from error


def _override(settings: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key. Naming another method, model or device kind keeps only the settings that the new one knows."""
    *path, last = key.split(".")
    section = settings
    for part in path:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise InvalidSetting(f"'{key}' cannot be set: '{part}' is a value, not a section")
    if len(path) == 1 and (path[0], last) in _CHOICES and value in _CHOICES[path[0], last]:
        known = {field.name for field in fields(_CHOICES[path[0], last][str(value)])}
        settings[path[0]] = section = {name: kept for name, kept in section.items() if name in known}
    section[last] = value


def _choices(section: Any, key: str) -> dict[str, Any]:  # noqa: ANN401 - an annotated union
    """Map each value of a union's discriminating field to the class that it selects."""
    classes = get_args(get_args(section)[0])
    return {value: cls for cls in classes for value in get_args(cls.__annotations__[key])}


def _complete(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the sections that do not say which method, model or devices they describe: they describe the default."""
    defaults = Experiment()
    return {
        section: {key: getattr(getattr(defaults, section), key), **given}
        for section, key in _CHOICES
        if isinstance(given := settings.get(section), Mapping)
    }


_CHOICES = {
    ("method", "name"): _choices(AnyMethod, "name"),
    ("model", "name"): _choices(Model, "name"),
    ("devices", "kind"): _choices(AnyDevices, "kind"),
}


def _describe(problem: Any, settings: Mapping[str, object]) -> str:  # noqa: ANN401 - pydantic's error details
    """Say in one clause what is wrong with which key."""
    # Within a union pydantic puts the chosen alternative's name into the path; it is no key of the file.
    path: list[str] = []
    place: object = settings
    for part in problem["loc"]:
        if isinstance(place, Mapping) and part not in place and part in place.values() and part != problem["loc"][-1]:
            continue
        path.append(str(part))
        place = place.get(part) if isinstance(place, Mapping) else None
    key = ".".join(path) or "the experiment"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key '{key}'{_suggest(key, _known_keys())}"
    if problem["type"].startswith("union_tag"):
        choices = problem["ctx"].get("expected_tags", "")
        return f"{key} needs {problem['ctx']['discriminator']} to be one of {choices}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message[:1].lower()}{message[1:]}" if path else message


def _known_keys() -> list[str]:
    classes: dict[str, list[Any]] = {
        "data": [DataSettings],
        "client": [ClientSettings],
        "evaluate": [EvaluateSettings],
    }
    for (section, _), choices in _CHOICES.items():
        classes[section] = list(choices.values())
    nested = [f"{section}.{field.name}" for section, kinds in classes.items() for cls in kinds for field in fields(cls)]
    return [field.name for field in fields(Experiment)] + nested


def _suggest(name: str, known: Any) -> str:  # noqa: ANN401 - any collection of strings
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
