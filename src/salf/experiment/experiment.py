"""An experiment: everything that determines a run, as one validated value that is read from and written to TOML.

Files hold differences from the defaults. Presets are files that are installed with the package.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticKnownError, PydanticSerializationError, to_json

from salf.aggregation import ServerOptimizer
from salf.data import NAMES
from salf.devices import AnyDevices, UniformDepthDevices
from salf.engines import DEVICE_NAMES, EngineName, OptimizerSettings, is_device_name
from salf.errors import InvalidSetting
from salf.experiment.files import NOT_REPRODUCIBLE, preset_names, read
from salf.experiment.messages import describe
from salf.experiment.sections import Section, complete, origins, override
from salf.methods import METHODS, AnyMethod, Salf, is_asynchronous
from salf.models import Mlp, Model
from salf.values import Count, one_of, validated


def _check(names: Iterable[str], accepts: Callable[[Any], bool]) -> Callable[[object], object]:
    """Return a validator that accepts some names.

    Args:
        names: What is listed in the error.
        accepts: Whether a name is one of them.
    """

    def check(name: object) -> object:
        if not accepts(name):
            raise PydanticKnownError("literal_error", {"expected": ", ".join(f"'{known}'" for known in names)})
        return name

    return check


DataName = Annotated[str, BeforeValidator(_check((*NAMES, "tensors"), (*NAMES, "tensors").__contains__))]
MethodName = Annotated[str, BeforeValidator(_check(METHODS, METHODS.__contains__))]
# Whether this machine has the device is checked when a run begins.
DeviceName = Annotated[str, AfterValidator(_check(DEVICE_NAMES, is_device_name))]


@validated
class DataSettings:
    """The data set, and how it is divided among the clients.

    Attributes:
        name: The data set; "tensors" stands for data given in Python.
        root: The folder with its files; None fetches them once into the user's cache.
        clients: The number of clients, the population.
        partition: How the training examples are divided.
        alpha: The concentration of `partition="dirichlet"`; smaller values divide the classes less evenly.
        shards_per_client: The number of label-sorted slices for each client, of `partition="shards"`.
        size_sigma: The log-normal spread of client sizes, of `partition="iid"` and "label-order".
    """

    name: DataName = "digits"
    root: Path | None = None
    clients: Count = 30
    partition: Literal["iid", "shards", "dirichlet", "label-order"] = "iid"
    alpha: Annotated[float, Field(gt=0)] = 0.5
    shards_per_client: Count = 2
    size_sigma: Annotated[float, Field(ge=0)] = 0.0


@validated
class ClientSettings(OptimizerSettings):
    """What a client does in a round: optimizer steps on batches of its own examples.

    Attributes:
        batch_size: Examples in a batch; a client with fewer uses all it has.
        local_steps: Optimizer steps in a round.
        cohort: How many clients take part in each round, drawn without replacement; None for all.
    """

    batch_size: Count = 16
    local_steps: Count = 1
    cohort: Count | None = None


@validated
class EvaluateSettings:
    """When and how the global model is tested.

    Attributes:
        every: Rounds between two tests; the last round is always tested.
        examples: How many test examples are used, the same in every run; None for all.
        target: The accuracy that the time to accuracy of `salf compare` refers to.
    """

    every: Count = 10
    examples: Count | None = None
    target: Annotated[float, Field(gt=0, le=1)] | None = None


@validated
class Expected:
    """The measured final test accuracy of a method.

    Attributes:
        accuracy: The mean over seeds.
        tolerance: How far a single run may differ from it.
    """

    accuracy: Annotated[float, Field(ge=0, le=1)]
    tolerance: Annotated[float, Field(gt=0, le=1)]


@validated
class Experiment:
    """Everything that determines a run; two runs of equal experiments on one machine's CPU give the same bytes.

    `engine` computes the training of the clients: "plain" one after another, "fused" and "stacked" many at once,
    "flower" in clients of Flower's simulation engine; "auto" chooses one of the first three. They agree up to rounding.

    `device` is the CPU or a CUDA device ("cuda:N" with its number for N), which must exist when the run begins. The
    cohorts, the depth of each client and the virtual time do not depend on it. The weights do, by rounding.

    >>> experiment = Experiment.load("digits", **{"rounds": 20, "data.clients": 10})
    >>> experiment.rounds, experiment.data.clients, experiment.method.name
    (20, 10, 'salf')
    """

    name: Annotated[str, Field(min_length=1)] = "experiment"
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    rounds: Count = 100
    engine: EngineName = "auto"
    device: DeviceName = "cpu"
    data: DataSettings = field(default_factory=DataSettings)
    model: Model = field(default_factory=Mlp)
    client: ClientSettings = field(default_factory=ClientSettings)
    devices: AnyDevices = field(default_factory=UniformDepthDevices)
    method: AnyMethod = field(default_factory=Salf)
    server: ServerOptimizer = field(default_factory=ServerOptimizer)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    expected: dict[MethodName, Expected] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.client.cohort is not None and self.client.cohort > self.data.clients:
            most = self.data.clients
            raise ValueError(
                f"client.cohort is {self.client.cohort}, more than data.clients = {most}; choose at most {most}"
            )
        if is_asynchronous(self.method):
            _check_without_rounds(self)

    @classmethod
    def load(cls, path_or_preset: str | Path, **dotted_overrides: object) -> "Experiment":
        """Read a TOML file, or the preset of that name, and override single settings by their dotted names.

        Another method, model or device model keeps only those settings of the file that it knows. A method, rule or
        device model may be given as an instance, which is kept as it is.

        Args:
            path_or_preset: The path of a file, or the name of a preset.
            dotted_overrides: Values by dotted names; a table sets what is in it, and no more.

        Raises:
            InvalidSetting: Lists every problem: the key, where it stands and what to write instead.

        >>> Experiment.load("digits", **{"method.name": "drop", "method.deadline": 2}).method.name
        'drop'
        """
        settings, origin = read(path_or_preset)
        settings.setdefault("name", Path(path_or_preset).stem)
        problems = override(settings, dotted_overrides, Section({"": cls}))
        return cls._validate(settings, f"{origin} with overrides" if dotted_overrides else origin, problems)

    @classmethod
    def parse(cls, settings: Mapping[str, object], origin: str) -> "Experiment":
        """Validate settings nested as in a file; `origin` names them in an error.

        >>> Experiment.parse({"data": {"clients": 5}}, "here").data.clients
        5
        """
        return cls._validate(settings, origin, [])

    @classmethod
    def _validate(cls, settings: Mapping[str, object], origin: str, problems: list[str]) -> "Experiment":
        experiment, given, whole, root = None, dict[str, object](), dict[str, object](), Section({"": cls})
        try:
            whole = complete(settings, root, given)
            # JSON's types are those of a file; anything that Python would convert to them is a mistake there.
            text = to_json(whole, inf_nan_mode="constants")
            experiment = TypeAdapter(cls).validate_json(text, strict=True, context=given)
        except ValidationError as error:
            problems = [*problems, *(describe(problem, whole, root) for problem in error.errors())]
        except PydanticSerializationError as error:
            problems = [*problems, f"{error}; choose text that UTF-8 can hold"]
        except InvalidSetting as error:
            problems = [*problems, str(error)]
        if experiment is None or problems:
            raise InvalidSetting(f"{origin}: {'; '.join(problems)}")
        return experiment

    def with_method(self, name: str) -> "Experiment":
        """Return the experiment with another method, which keeps the current method's settings that it knows.

        >>> Experiment(method=Salf(deadline=2.0)).with_method("drop").method.deadline
        2.0
        """
        if name not in METHODS:
            raise InvalidSetting(f"there is no method '{name}'; choose {one_of(name, [*METHODS])}")
        if type(self.method) is METHODS[name]:
            return self
        known = {field.name for field in fields(METHODS[name])} - {"name"}
        kept = {field.name: getattr(self.method, field.name) for field in fields(self.method) if field.name in known}
        return replace(self, method=METHODS[name](**kept))

    def is_as_published(self) -> bool:
        """Return whether this is a preset, except for seed, method, engine, device, data folder and evaluation."""
        if self.name not in preset_names() or self.method.name not in METHODS:
            return False
        preset = Experiment.load(self.name).with_method(self.method.name)
        own = replace(preset.data, root=self.data.root)
        same = replace(preset, seed=self.seed, engine=self.engine, device=self.device)
        return self == replace(same, evaluate=self.evaluate, data=own)

    def unreproducible(self) -> tuple[str, ...]:
        """Return why the experiment's file alone does not reproduce the run, a phrase each; empty if it does.

        >>> Experiment(data=DataSettings(name="tensors")).unreproducible()
        ('data was given in Python',)
        """
        return (*(("data was given in Python",) if self.data.name == "tensors" else ()), *origins(self))

    def to_toml(self, also: Iterable[str] = ()) -> str:
        """Return the complete experiment as TOML, after comments that say why it does not reproduce the run.

        Values given in Python appear under the name of their class. `Experiment.load` refuses such a file unless the
        class is registered.

        Args:
            also: Further reasons, such as "model was given in Python".

        >>> import tomllib
        >>> again = Experiment.parse(tomllib.loads(Experiment(rounds=7).to_toml()), "here")
        >>> again == Experiment(rounds=7)
        True
        """
        reasons = (*self.unreproducible(), *also)
        comment = "".join(f"# {line}\n" for line in (NOT_REPRODUCIBLE, *(f"- {reason}" for reason in reasons)))
        text = tomli_w.dumps(TypeAdapter(Experiment).dump_python(self, mode="json", exclude_none=True))
        return f"{comment}\n{text}" if reasons else text


def _check_without_rounds(experiment: Experiment) -> None:
    """Raise `InvalidSetting` for settings that an asynchronous method would ignore."""
    method, problems = experiment.method.name, []
    if experiment.engine not in ("auto", "plain"):
        problems.append(
            f"engine is '{experiment.engine}', but the clients of '{method}' train one by one; choose 'auto' or 'plain'"
        )
    if experiment.server != ServerOptimizer():
        problems.append(
            f"server.* is set, but method '{method}' has no rounds; remove that section, or choose a synchronous method"
        )
    if problems:
        raise InvalidSetting("; ".join(problems))
