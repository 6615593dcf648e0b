"""The models that an experiment can name, and their reproducible construction."""

from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import nn

from salf.errors import InvalidSetting
from salf.models.factory import Factory, import_callable
from salf.models.residual import ResidualNet
from salf.models.sequential import Cnn, Mlp, Vgg
from salf.models.transformer import Transformer

Model: TypeAlias = Annotated[Mlp | Cnn | Vgg | ResidualNet | Transformer | Factory, Field(discriminator="name")]


def build(model: Model, input_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """Build a model on the CPU with weights that depend on the seed only.

    Torch's generators keep their states. A `Factory` that draws from another generator must seed it itself.

    Args:
        model: The description.
        input_shape: Shape of one example, without the batch: (channels, height, width) for images.
        num_classes: At least 2.
        seed: The experiment's seed.

    Raises:
        InvalidSetting: The model does not fit the data or the memory.

    >>> first, second = (build(Mlp(), (784,), num_classes=10, seed=1) for _ in range(2))
    >>> bool((first.fc1.weight == second.fc1.weight).all())
    True
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        if isinstance(model, Factory):
            # Only the first import executes a module, so what it seeds or draws must not count.
            import_callable(model.call)
        # torch.manual_seed would also seed the accelerators' generators, which are not restored.
        torch.default_generator.manual_seed(seed)
        try:
            return model.build(input_shape, num_classes)
        except (RuntimeError, TypeError, ArithmeticError, MemoryError) as error:
            reason = str(error).partition("\n")[0]
            raise InvalidSetting(
                f"model.name is '{model.name}', which cannot be built in these sizes ({reason}); choose smaller ones"
            ) from error
