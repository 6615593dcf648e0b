"""What the server tells each client in a round: how long it has, counted from when, and what counts as a layer.

The instructions travel in the round's one `ConfigRecord`, beside the user's own settings, because Flower's mods accept
no second record.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flwr.app import ConfigRecord, Message

from salf.errors import InvalidSetting
from salf.layers import Layer, Layers

CountedFrom = Literal["message", "loop"]
_PREFIX = "salf-"


@dataclass(frozen=True)
class TrainInstructions:
    """What the server tells one client in one round.

    Attributes:
        round: The round's number, from 1.
        deadline_seconds: The time that the client has, in seconds.
        layers: The layers of the model, from input to output.
        counted_from: When the deadline starts: when the server made the message, or when the client's loop starts.
        upload_bytes_per_second: The rate of the client's earlier replies; None if it is not known yet.
        whole: Whether the reply contains every array, those of unfinished layers unchanged. Flower's clipping mods
            need that.

    >>> layers = Layers((Layer("head", ("head.weight",)),))
    >>> config = ConfigRecord({"lr": 0.1})
    >>> TrainInstructions(3, 20.0, layers).write(config)
    >>> config["salf-round"], config["salf-deadline-s"]
    (3, 20.0)
    """

    round: int
    deadline_seconds: float
    layers: Layers
    counted_from: CountedFrom = "message"
    upload_bytes_per_second: float | None = None
    whole: bool = False

    def write(self, config: ConfigRecord) -> None:
        """Add the instructions to a message's configuration."""
        config[f"{_PREFIX}round"] = self.round
        config[f"{_PREFIX}deadline-s"] = float(self.deadline_seconds)
        config[f"{_PREFIX}counted-from"] = self.counted_from
        config[f"{_PREFIX}upload-bytes-per-s"] = float(self.upload_bytes_per_second or 0.0)
        config[f"{_PREFIX}whole"] = self.whole
        config[f"{_PREFIX}layers"] = layers_to_json(self.layers)

    @classmethod
    def read(cls, message: Message) -> "TrainInstructions":
        """Read the instructions of a message.

        Raises:
            InvalidSetting: The message has no instructions, or another version of salf wrote them.
        """
        for config in message.content.config_records.values():
            if f"{_PREFIX}round" in config:
                return cls._parse(config)
        raise InvalidSetting(
            "the message has no deadline, because the server's strategy is not a SalfStrategy; "
            "wrap it: SalfStrategy(strategy, deadline=..., layers=...)"
        )

    @classmethod
    def _parse(cls, config: Mapping[str, Any]) -> "TrainInstructions":
        try:
            return cls(
                round=int(config[f"{_PREFIX}round"]),
                deadline_seconds=float(config[f"{_PREFIX}deadline-s"]),
                layers=layers_from_json(str(config[f"{_PREFIX}layers"])),
                counted_from="loop" if config[f"{_PREFIX}counted-from"] == "loop" else "message",
                upload_bytes_per_second=float(config[f"{_PREFIX}upload-bytes-per-s"]) or None,
                whole=bool(config[f"{_PREFIX}whole"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidSetting(
                f"the round's deadline cannot be read ({type(error).__name__}: {error}); "
                "install the same version of salf on the server and on the nodes"
            ) from error


def layers_to_json(layers: Layers) -> str:
    """Write layers as one line of JSON.

    >>> head = Layer("head", ("head.weight",), ("head.mask",))
    >>> layers = Layers((head,), {"tied": "head.weight"}, ("spare",), {"head.mask": "constant"})
    >>> layers_from_json(layers_to_json(layers)) == layers
    True
    """
    sequence = [[layer.name, list(layer.parameters), list(layer.buffers)] for layer in layers]
    return json.dumps([sequence, dict(layers.aliases), list(layers.unused), dict(layers.buffer_kinds)])


def layers_from_json(text: str) -> Layers:
    """Read what `layers_to_json` wrote.

    Raises:
        ValueError: The text is not JSON, or does not describe layers.
        TypeError: The same.
    """
    sequence, aliases, unused, kinds = json.loads(text)
    layers = (Layer(name, tuple(parameters), tuple(buffers)) for name, parameters, buffers in sequence)
    return Layers(tuple(layers), aliases, tuple(unused), kinds)
