"""A network's output as one tensor, whatever ``forward`` returns: which of several is meant, and what is done to it.

A forward hook on the root module does it: the parameters keep their names, every call of the network gives the tensor,
and ``torch.export`` traces it with the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from kdexport.errors import KDExportError, did_you_mean
from kdexport.tasks.postprocessing import Postprocessing

USUAL = ("logits", "out")  # of transformers' and of torchvision's networks: taken where nothing is asked for
PREFIX = "output:"  # of a layer's name that stands for another output: output:aux
PROJECTION = "embedding_projection"  # a submodule's name: the layer that ``models.embedding_dim`` adds
SHOWN = 12


def named_outputs(output: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors that a forward gives, by key, field or index; those of a nest by a dotted path."""
    if isinstance(output, Tensor):
        return {prefix.removesuffix("."): output}
    if isinstance(output, Mapping):
        items: Any = output.items()
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        items = zip(output._fields, output, strict=True)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        items = enumerate(output)
    elif is_dataclass(output):
        items = ((item.name, getattr(output, item.name)) for item in fields(output))
    else:
        return {}
    return {name: tensor for key, value in items for name, tensor in named_outputs(value, f"{prefix}{key}.").items()}


class Output:
    """The hook: picks one tensor of what ``forward`` returns and finishes it.

    Args:
        wanted: A key, a field's name, an index, or a dotted path of them; None: a lone tensor, else ``logits`` or
            ``out``.
        postprocessing: What is done to it; None: nothing.
        who: What a message calls the network.
        key: Of the recipe, which a message tells to set.
        trained: Whether the network is trained: ``wanted`` may then be of the heads that it has in training mode alone,
            and in evaluation a lone tensor is taken as it is.

    Raises:
        KDExportError: When the network runs: it gives no such tensor, or several of which none is asked for.
    """

    def __init__(
        self,
        wanted: str | int | None,
        postprocessing: Postprocessing | None,
        who: str,
        key: str = "output",
        *,
        trained: bool = False,
    ) -> None:
        self.wanted = None if wanted is None else str(wanted)
        self.postprocessing = postprocessing
        self.also: tuple[str, ...] = ()  # further outputs that follow the one, as they are: of a file that holds them
        self._who, self._key, self._trained = who, key, trained
        self._listeners: list[Any] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Tensor | tuple[Tensor, ...]:  # noqa: ARG002
        """Return the one tensor, or a tuple that it leads where others are asked for."""
        the = "in training mode the" if module.training else "the"
        alone = self._trained and not module.training and isinstance(output, Tensor)
        tensor = self._picked(output, None if alone else self.wanted, the)
        projection = getattr(module, PROJECTION, None)  # to ``embedding_dim``
        tensor = tensor if projection is None else projection(tensor)
        tensor = tensor if self.postprocessing is None else self.postprocessing.apply(tensor)
        return (tensor, *(self._picked(output, name, the) for name in self.also)) if self.also else tensor

    def _picked(self, output: Any, wanted: str | None, the: str) -> Tensor:
        if isinstance(output, Tensor) and wanted is None:
            return output
        named = named_outputs(output)
        for listen in self._listeners:
            listen(named)
        if wanted is not None and wanted in named:
            return named[wanted]
        if wanted is None:
            usual = [name for name in USUAL if name in named] or (list(named) if len(named) == 1 else [])
            if usual:
                return named[usual[0]]
        has = ", ".join(f"{name or 'one tensor'} {list(tensor.shape)}" for name, tensor in list(named.items())[:SHOWN])
        gives = f"it gives {has or f'a {type(output).__name__} without tensors'}"
        if wanted is not None:
            raise KDExportError(
                f"{the} {self._who} has no output '{wanted}'", hint=f"{did_you_mean(wanted, named)}{gives}"
            )
        example = next(iter(named), "0")
        size = f" of {len(output)}" if isinstance(output, tuple | list | dict) else ""
        raise KDExportError(
            f"{the} {self._who} gives a {type(output).__name__}{size}, and nothing says which tensor of it is meant",
            hint=f'{gives}: set {self._key}, e.g. {self._key} = "{example}"',
        )


def install(network: nn.Module, output: Output) -> None:
    """Let a network give one tensor; a network that has been given an ``Output`` gets the new one in its place."""
    for key, hook in list(network._forward_hooks.items()):
        if isinstance(hook, Output):
            del network._forward_hooks[key]
    network.register_forward_hook(output)


def output_of(network: nn.Module) -> Output | None:
    """Return a network's ``Output``, or None where it has none."""
    return next((hook for hook in network._forward_hooks.values() if isinstance(hook, Output)), None)


@contextmanager
def listening(network: nn.Module, listen: Any) -> Iterator[None]:
    """Call ``listen(named)`` with all that a network gives, name -> tensor, where that is more than one tensor."""
    hook = output_of(network)
    if hook is None:
        yield
        return
    hook._listeners.append(listen)
    try:
        yield
    finally:
        hook._listeners.remove(listen)
