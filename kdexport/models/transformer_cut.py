"""A transformer with some of its layers and some of its tokens, its weights those of the whole one.

DistilBERT began so (Sanh et al. 2019): "taking one layer out of two" of the teacher. The cut network is built from its
configuration alone, so that a trained student is loaded without the teacher's weights.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdexport.errors import SourceError
from kdexport.models.outputs import PROJECTION

EVERY_OTHER = "every-other"


@dataclass(frozen=True)
class Cut:
    """What is kept of a transformer.

    Attributes:
        layers: As ``chosen_layers`` takes them; None: all.
        kept: Ids of the tokens that are kept, int64 ascending; None: all.
    """

    layers: str | int | tuple[int, ...] | None = None
    kept: NDArray[np.int64] | None = None

    def layers_of(self, config: Any, model: str) -> tuple[int, ...] | None:
        """Return which of a configuration's layers are kept, or None for all."""
        return None if self.layers is None else chosen_layers(self.layers, layer_count(config, model), model)

    def config(self, config: Any, model: str) -> Any:
        """Return the configuration of what is kept."""
        return cut_config(config, self.layers_of(config, model), self.kept)


def chosen_layers(wanted: str | int | Sequence[int], count: int, model: str) -> tuple[int, ...]:
    """Return which layers are kept, counted from 0.

    A number is how many, evenly spread with the first and the last; ``"every-other"`` is half of them: of 12 layers 0,
    2, 4, 7, 9, 11, as DistilBERT's ``extract.py`` has them.

    Raises:
        SourceError: The model has not that many layers, or one is named twice or out of order.
    """
    if isinstance(wanted, str):
        wanted = (count + 1) // 2
    if isinstance(wanted, int):
        if not 1 <= wanted <= count:
            raise SourceError(
                f"student.layers = {wanted}, and {model} has {count} layers",
                hint=f"give a number from 1 to {count}, or a list of layers counted from 0",
            )
        return tuple(int(place) for place in np.linspace(0, count - 1, wanted).round())
    layers = tuple(wanted)
    outside = [layer for layer in layers if not 0 <= layer < count]
    if outside:
        raise SourceError(
            f"student.layers names the layer {outside[0]}, and {model} has {count} layers",
            hint=f"they are counted from 0 to {count - 1}: e.g. layers = [0, {count - 1}]",
        )
    if list(layers) != sorted(set(layers)):
        raise SourceError(
            f"student.layers = {list(layers)} names a layer twice, or not in order",
            hint=f"give each once, from the input to the output: layers = {sorted(set(layers))}",
        )
    return layers


def layer_count(config: Any, model: str) -> int:
    """Return how many layers a transformers configuration has.

    Raises:
        SourceError: It does not say.
    """
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int) or count < 1:
        raise SourceError(
            f"{model} is a '{getattr(config, 'model_type', 'model')}' without a number of layers in its config",
            hint="take layers out of [student]; a network of your own goes in as file.py:Name",
        )
    return count


def cut_config(config: Any, layers: Sequence[int] | None, kept: NDArray[np.int64] | None) -> Any:
    """Return a configuration with some layers and some tokens; None keeps them all.

    What it says of each layer (``layer_types``) and of tokens by id (``pad_token_id``) goes with them.
    """
    made = copy.deepcopy(config)
    if layers is not None:
        count = int(config.num_hidden_layers)
        for key, value in config.to_dict().items():
            if isinstance(value, list | tuple) and len(value) == count and "layer" in key:
                setattr(made, key, [value[layer] for layer in layers])
        made.num_hidden_layers = len(layers)
    if kept is not None:
        new = {int(old): place for place, old in enumerate(kept)}
        for key, value in config.to_dict().items():
            if key.endswith("_token_id"):
                setattr(made, key, new.get(value) if isinstance(value, int) else None)
        made.vocab_size = len(kept)
    return made


def take_weights(
    small: nn.Module, whole: nn.Module, layers: Sequence[int] | None, kept: NDArray[np.int64] | None, model: str
) -> None:
    """Give a cut network the weights of the whole one that it has in common with it, in place.

    Args:
        small: Built by ``cut_config``.
        whole: The network that is cut.
        layers: Which layers ``small`` has of it.
        kept: Which rows of the embedding.
        model: What messages call the whole one.

    Raises:
        SourceError: The layers or the embedding are not found, or a layer cannot do without one that is left out.
    """
    state: dict[str, Tensor] = dict(whole.state_dict())
    if layers is not None:
        state = _renumbered(state, layer_stack(whole, model), layers)
    if kept is not None:
        names = _embeddings(whole, model)
        rows = torch.from_numpy(kept)
        height = min(len(state[name]) for name in names)
        if int(rows.max()) >= height:
            raise SourceError(
                f"{model} knows {height} tokens, and the texts hold the token {int(rows.max())}",
                hint="the tokenizer is another model's: set data.tokenizer to the teacher's own",
            )
        state.update({name: state[name][rows] for name in names})
    own = {name: item for name, item in small.state_dict().items() if not name.startswith(f"{PROJECTION}.")}
    wrong = [name for name, tensor in own.items() if name not in state or (state[name].shape != tensor.shape)]
    if wrong:
        raise SourceError(
            f"the layers {list(layers or ())} of {model} do not stand alone: nothing in it is {wrong[0]}",
            hint="keep the layer 0 too, or give other layers; what cannot be cut goes in as file.py:Name",
        )
    small.load_state_dict({name: state[name] for name in own}, strict=False)  # a layer behind it has its own


def layer_stack(network: nn.Module, model: str) -> str:
    """Return the path of a transformer's list of layers.

    Raises:
        SourceError: It has none, or several, or its layers share their weights.
    """
    config = next((module.config for module in network.modules() if hasattr(module, "config")), None)
    count = layer_count(config, model)
    lists: dict[str, int] = {
        path: len(module) for path, module in network.named_modules() if isinstance(module, nn.ModuleList)
    }
    found: list[str] = [path for path, length in lists.items() if length == count]
    found = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    if len(found) != 1:
        what = f"{len(found)} lists of {count} layers" if found else f"no list of {count} layers: they share weights"
        raise SourceError(
            f"{model} cannot be cut by layers: it has {what}",
            hint="take layers out of [student] and give a smaller model, or wrap a part of it as file.py:Name",
        )
    return found[0]


def _renumbered(state: Mapping[str, Tensor], stack: str, layers: Sequence[int]) -> dict[str, Tensor]:
    places = {str(old): str(new) for new, old in enumerate(layers)}
    made = {}
    for name, tensor in state.items():
        if not name.startswith(f"{stack}."):
            made[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if number in places:
            made[f"{stack}.{places[number]}.{rest}"] = tensor
    return made


def _embeddings(network: nn.Module, model: str) -> list[str]:
    """Return the names of the token embedding's weights, one for each place that it is used under."""
    inner = next((module for module in network.modules() if hasattr(module, "get_input_embeddings")), None)
    table = None if inner is None else inner.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(table, nn.Embedding):
        raise SourceError(
            f"{model} has no table of token embeddings that could be cut",
            hint="take vocabulary out of [student], or name a transformer of text",
        )
    return [
        f"{path}.weight"
        for path, module in network.named_modules(remove_duplicate=False)
        if module is table or (isinstance(module, nn.Embedding) and module.weight is table.weight)
    ]
