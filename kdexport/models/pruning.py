"""Channels and whole blocks are taken out of a trained network; the weights that are left are where a student starts.

torch-pruning finds which channels depend on each other (Fang et al. 2023, DepGraph) and takes the least important of
each group out: the same share of every layer, rounded down to a multiple that the hardware likes. That share is the
one that leaves as many of the network's parameters as the recipe asks for. What torch-pruning does not know is done
here: layers that make the output are left alone, heads of attention stay whole, weights that are shared stay shared,
and a network that does not run once it is pruned is an error that names the layers to ignore.
"""

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdexport.artifacts import key_of
from kdexport.errors import SourceError, did_you_mean
from kdexport.models.blocks import chosen_blocks
from kdexport.models.importance import import_torch_pruning, importance
from kdexport.models.pruned import TakenOut, cut_layers, plan_between, replace_module, set_plan, size
from kdexport.models.sizes import projections, resize, tie_again
from kdexport.recipe import Prune
from kdexport.results import Pruned

STEPS = 1000  # the share of channels that is taken out is a multiple of 1 / STEPS
NEAR = 0.005  # of the share of parameters that is asked for, where the search ends
FAR = 0.02  # a share that is larger than asked for by more than this is an error
SHOWN = 8

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.LSTM)

Gradients = Callable[[nn.Module], dict[str, Tensor]]
_channels_out: dict[str, float] = {}  # what an earlier search has found: it depends on shapes alone


def prune(
    network: nn.Module,
    settings: Prune,
    inputs: tuple[Tensor, ...],
    model: str,
    *,
    seed: int = 0,
    gradients: Gradients | None = None,
    macs: Callable[[nn.Module], int | None] = lambda _: None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a pruned copy of a network, and what is to be said of it.

    Args:
        network: The whole one, in evaluation mode; it is left as it is.
        settings: The recipe's [student.prune].
        inputs: A batch of two as the network takes it.
        model: What messages call it.
        seed: Of random importance.
        gradients: Gives the gradient of each parameter by name, for ``"taylor"``.
        macs: Counts the multiply-accumulates of one sample.

    Raises:
        SourceError: torch-pruning is not installed, a layer that is named is not there, or the network cannot be pruned
            so far; the message says which layers stand in the way.
    """
    _check_names(network, settings, model)
    whole = copy.deepcopy(network).eval()
    removed: dict[str, int] = {}
    if settings.layers is not None:
        with torch.no_grad():
            removed = chosen_blocks(whole, settings.layers, inputs, model)
        for path, outputs in removed.items():
            replace_module(whole, path, TakenOut(outputs))
        _check_without_blocks(network, whole, removed, inputs, model)
    notes: tuple[str, ...] = ()
    channels_out, kept, cut = None, None, whole
    if settings.keep is not None:
        slopes = gradients(whole) if gradients and settings.importance == "taylor" else {}
        cutter = _Cutter(whole, settings, inputs, model, seed, slopes)
        channels_out = cutter.search()
        cut = cutter.cut(channels_out)
        if cutter.unreached:
            shown = ", ".join(cutter.unreached[:SHOWN]) + (", ..." if len(cutter.unreached) > SHOWN else "")
            notes = (*notes, f"no gradient reaches {shown}: left whole")
        operators = _own_operators(whole, inputs)
        if operators:
            notes = (*notes, f"the operators {', '.join(operators)} are taken to work on each channel alone")
        kept = size(cut) / size(whole)
        if abs(kept - settings.keep) > FAR:
            told = f"round_to = {settings.round_to} is coarse for it: keep = {settings.keep:g} became {kept:.3g}"
            notes = (*notes, told)
    summary = Pruned(
        importance=settings.importance,
        round_to=settings.round_to,
        keep=settings.keep,
        kept=kept,
        channels_out=channels_out,
        parameters_before=size(network),
        parameters=size(cut),
        macs_before=macs(network),
        macs=macs(cut),
        layers=cut_layers(network, cut, removed),
    )
    set_plan(cut, plan_between(network, cut, removed, summary))
    for name, parameter in cut.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(network.get_parameter(name).requires_grad)
    return cut, notes


class _Cutter:
    """Prunes copies of one network."""

    def __init__(
        self,
        whole: nn.Module,
        settings: Prune,
        inputs: tuple[Tensor, ...],
        model: str,
        seed: int,
        gradients: Mapping[str, Tensor],
    ) -> None:
        self.whole, self.settings, self.inputs, self.model, self.seed = whole, settings, inputs, model, seed
        self.gradients = gradients
        self.tp = import_torch_pruning()
        self.unreached: tuple[str, ...] = ()  # layers that no gradient leads to
        self._last: tuple[float, nn.Module] | None = None
        with torch.no_grad():
            self.output = _shape(whole(*inputs))

    def search(self) -> float:
        """Return the share of each layer's channels to take out.

        Raises:
            SourceError: So few parameters cannot be reached, or nothing was taken out.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.whole.state_dict().items()}
        key = key_of(shapes, self.settings.model_dump(), self.model)
        if key not in _channels_out:
            _channels_out[key] = self._searched(self.settings.keep or 0.0)
        return _channels_out[key]

    def _searched(self, wanted: float) -> float:
        total = size(self.whole)
        shares: dict[int, float] = {0: 1.0}

        def share(step: int) -> float:
            if step not in shares:
                shares[step] = size(self.cut(step / STEPS)) / total
            return shares[step]

        low, high = 0, STEPS  # more is left at low than at high
        step = round(STEPS * (1 - math.sqrt(wanted)))  # weights shrink with their inputs and their outputs
        while high - low > 1:
            step = min(max(step, low + 1), high - 1)
            if abs(share(step) - wanted) < NEAR:
                return step / STEPS
            low, high = (step, high) if share(step) > wanted else (low, step)
            step = (low + high) // 2
        if min(shares.values()) > wanted + FAR:  # a layer that would lose all its channels loses none: more is left
            for step in range(STEPS // 20, STEPS, STEPS // 20):
                share(step)
        few = [step for step, left in shares.items() if left <= wanted + FAR]
        if few:
            return min(few, key=lambda one: (abs(shares[one] - wanted), one)) / STEPS
        least = min(shares.values())
        if least == 1.0:
            raise SourceError(
                f"student.prune.keep = {wanted:g} takes nothing out of {self.model}: its layers are ignored, or "
                f"have too few channels for round_to = {self.settings.round_to}",
                hint="set round_to = 1, or name fewer layers in ignore",
            )
        raise SourceError(
            f"student.prune.keep = {wanted:g} cannot be reached: {least:.1%} of the parameters of {self.model} are "
            "left at the least, in layers that are not pruned or have too few channels",
            hint=f"set keep = {math.ceil(least * 100) / 100:g}, name fewer layers in ignore, or set round_to = 1",
        )

    def cut(self, channels_out: float) -> nn.Module:
        """Return a copy without that share of each layer's channels, proved to run.

        Raises:
            SourceError: It does not run, or torch-pruning cannot prune it; the layers at fault are named.
        """
        if self._last is not None and self._last[0] == channels_out:  # what the search has ended with
            return self._last[1]
        try:
            self._last = (channels_out, self._attempt(channels_out, self.settings.ignore))
        except _CutError as fault:
            raise self._explained(fault, channels_out) from fault
        return self._last[1]

    def _attempt(self, channels_out: float, ignore: Sequence[str], only: int | None = None) -> nn.Module:
        """Prune a copy: all groups of channels, or one of them alone.

        Raises:
            _CutError: It cannot be pruned, or does not run.
        """
        made = copy.deepcopy(self.whole)
        names = {module: name for name, module in made.named_modules()}
        with _quiet(self.seed):
            pruner = self._pruner(made, channels_out, ignore)
            try:
                for number, group in enumerate(pruner.step(interactive=True)):
                    if only in (None, number):
                        group.prune()
            except Exception as error:
                raise _CutError(f"torch-pruning fails: {_first_line(error)}") from error
        layers = [module for module in names if isinstance(module, LAYERS)]
        self.unreached = tuple(names[module] for module in layers if module not in pruner.DG.module2node)
        resize(self.whole, made)
        untied = tie_again(self.whole, made)
        if untied:
            raise _CutError(f"{untied[0]} and {untied[1]} are one tensor, and would become two")
        _check_runs(made, self.inputs, self.output)
        return made

    def _pruner(self, made: nn.Module, channels_out: float, ignore: Sequence[str]) -> Any:
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(True)  # what depends on what is read from the graph of gradients
            if name in self.gradients:
                parameter.grad = self.gradients[name].clone()
        try:
            pruner = self.tp.pruner.BasePruner(
                made,
                self.inputs,
                importance=importance(self.tp, self.settings.importance),
                pruning_ratio=channels_out,
                round_to=self.settings.round_to,
                ignored_layers=[made.get_submodule(name) for name in ignore],
                num_heads=projections(made),
                in_channel_groups={},
                out_channel_groups={
                    module: module.num_heads for module in made.modules() if isinstance(module, nn.MultiheadAttention)
                },
                output_transform=_output,
            )
            pruner.ignored_layers += self._output_layers(pruner.DG)
        except _CutError:
            raise
        except Exception as error:
            raise _CutError(f"torch-pruning cannot follow it: {_first_line(error)}") from error
        return pruner

    def _output_layers(self, graph: Any) -> list[nn.Module]:
        """Return the layers whose channels are the output's: they stay."""
        kinds = [nn.modules.conv._ConvNd, nn.Linear, nn.LSTM]
        try:
            return [
                group[0].dep.target.module
                for group in graph.get_all_groups(root_module_types=kinds)
                if any(isinstance(dep.target.module, self.tp.ops._OutputOp) for dep, _ in group)
            ]
        except Exception as error:
            raise _CutError(f"torch-pruning fails: {_first_line(error)}") from error

    def _explained(self, fault: "_CutError", channels_out: float) -> SourceError:
        """Return which layers are at fault: each group of channels is pruned alone."""
        wrong: dict[str, str] = {}
        made = copy.deepcopy(self.whole)
        names = {module: name for name, module in made.named_modules()}
        ignore = list(self.settings.ignore)
        groups: list[list[str]] = []
        with contextlib.suppress(Exception), _quiet(self.seed):
            groups = [
                [names[dep.target.module] for dep, _ in group if _gives(dep, names)]
                for group in self._pruner(made, channels_out, ignore).step(interactive=True)
            ]
        for number, group in enumerate(groups):
            try:
                self._attempt(channels_out, ignore, only=number)
            except _CutError as error:
                wrong[group[0]] = error.reason
        wrong = wrong or dict.fromkeys(self._unfollowed(), fault.reason)
        where = f" in {fault.layer}" if fault.layer else ""
        if wrong and self._works(channels_out, [*ignore, *wrong]):
            shown = "; ".join(f"{name} ({reason})" for name, reason in list(wrong.items())[:SHOWN])
            quoted = ", ".join(f'"{name}"' for name in [*ignore, *wrong])
            return SourceError(
                f"{self.model} does not run once the channels of these layers are fewer: {shown}",
                hint=f"its forward fixes their number, or mixes them in a way that is not known: leave them whole with "
                f"ignore = [{quoted}] in [student.prune]",
            )
        return SourceError(
            f"channels cannot be taken out of {self.model}: {fault.reason}{where}",
            hint="name the part that is at fault in ignore under [student.prune], take whole blocks out with layers "
            "in place of keep, or give a student of your own",
        )

    def _unfollowed(self) -> list[str]:
        """Return the layers whose dependencies torch-pruning fails to work out."""
        made = copy.deepcopy(self.whole)
        names = {module: name for name, module in made.named_modules()}
        found: list[str] = []
        with _quiet(self.seed), contextlib.suppress(_CutError):
            pruner = self._pruner(made, 0.5, self.settings.ignore)
            for module in [item for item in pruner.DG.module2node if isinstance(item, LAYERS)]:
                if module in pruner.ignored_layers:
                    continue
                try:
                    give = pruner.DG.get_pruner_of_module(module)
                    channels = list(range(give.get_out_channels(module)))
                    pruner.importance(pruner.DG.get_pruning_group(module, give.prune_out_channels, channels))
                except Exception:  # noqa: BLE001 - whatever it raises, the layer is at fault
                    found.append(names[module])
        return found

    def _works(self, channels_out: float, ignore: Sequence[str]) -> bool:
        try:
            self._attempt(channels_out, ignore)
        except _CutError:
            return False
        return True


class _CutError(Exception):
    """A pruned copy does not run, or could not be made."""

    def __init__(self, reason: str, layer: str = "") -> None:
        super().__init__(reason)
        self.reason, self.layer = reason, layer


def _output(output: Any) -> Any:
    """Return the output as a node of its own: else it is one with the last layer, and that would be pruned."""
    return output * 1.0


def _gives(dep: Any, names: Mapping[nn.Module, str]) -> bool:
    """Whether a group takes out what a layer gives."""
    return dep.target.module in names and isinstance(dep.target.module, LAYERS)


def _check_runs(network: nn.Module, inputs: tuple[Tensor, ...], shape: tuple[int, ...]) -> None:
    """Run a network.

    Raises:
        _CutError: It fails, or gives another shape; in which layer is said.
    """
    within: list[str] = []

    def leave(*_: Any) -> None:
        within.pop()

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: within.append(path)

    hooks = [module.register_forward_pre_hook(enter(path)) for path, module in network.named_modules()]
    hooks += [module.register_forward_hook(leave) for module in network.modules()]
    try:
        with torch.no_grad():
            given = _shape(network(*inputs))
    except Exception as error:
        raise _CutError(_first_line(error), next((path for path in reversed(within) if path), "")) from error
    finally:
        for hook in hooks:
            hook.remove()
    if given != shape:
        raise _CutError(f"it then gives {list(given)} in place of {list(shape)}")


def _check_without_blocks(
    network: nn.Module, cut: nn.Module, removed: Mapping[str, int], inputs: tuple[Tensor, ...], model: str
) -> None:
    with torch.no_grad():
        shape = _shape(network(*inputs))
    try:
        _check_runs(cut, inputs, shape)
    except _CutError as fault:
        where = f" in {fault.layer}" if fault.layer else ""
        raise SourceError(
            f"{model} does not run without {', '.join(list(removed)[:SHOWN])}: {fault.reason}{where}",
            hint="take out other blocks: set layers under [student.prune] to their paths",
        ) from fault


def _check_names(network: nn.Module, settings: Prune, model: str) -> None:
    known = {path for path, _ in network.named_modules() if path}
    for name in settings.ignore:
        if name not in known:
            near = did_you_mean(name, known) or f"its layers are: {', '.join(sorted(known)[:SHOWN])}, ..."
            raise SourceError(f"student.prune.ignore names '{name}', which {model} has not", hint=near.strip())


def _own_operators(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Return the names of the operators written in Python that a network's gradients go through."""
    with torch.enable_grad():
        waiting = [network(*inputs).grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [item for item, _ in node.next_functions]
    own = {type(node).__name__ for node in seen if isinstance(node, torch.autograd.function.BackwardCFunction)}
    return sorted(name.removesuffix("Backward") for name in own)


def _shape(output: Any) -> tuple[int, ...]:
    return tuple(output.shape)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")


@contextlib.contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Keep torch-pruning's warnings and its random numbers to itself."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield
