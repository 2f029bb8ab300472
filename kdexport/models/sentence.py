"""Sentence embeddings: a transformer's token vectors pooled to one vector a text, as sentence-transformers does it.

What pools, and what follows, is read from the model's own ``modules.json``; a model without one is pooled by the mean
over the mask, and that is said. Texts are padded on the right here.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdexport.errors import SourceError
from kdexport.models.checkpoints import read

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # in the order in which sentence-transformers joins them
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU, "Sigmoid": nn.Sigmoid}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SAVE_AGAIN = "save the model again with SentenceTransformer.save(DIR)"
WIDEST = 2**20  # of a dense layer: a wider one is damage
WRAP = "wrap the network yourself as file.py:Name, so that its forward returns the embedding"


@dataclass(frozen=True)
class Dense:
    """A linear layer behind the pooling."""

    inputs: int
    outputs: int
    bias: bool
    activation: str
    folder: str  # of its weights, within the model


@dataclass(frozen=True)
class SentenceModules:
    """What follows a transformer: pooling, dense layers, L2 normalization."""

    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    transformer: str = ""  # its folder within the model
    stated: bool = False  # whether the model says so itself

    @property
    def text(self) -> str:
        """What it does, in words."""
        modes = " and ".join(self.pooling)
        kind = {"mean": "the mean over the mask", "cls": "the first token", "lasttoken": "the last token"}.get(modes)
        layers = "".join(f", a dense layer {one.inputs} -> {one.outputs}" for one in self.dense)
        said = "as its modules.json says" if self.stated else "it has no modules.json that says otherwise"
        return f"pooled by {kind or modes}{layers}{', normalized' if self.normalize else ''} ({said})"


class SentenceEmbedder(nn.Module):
    """A transformer with its pooling: ``(input_ids, attention_mask)`` to embeddings ``[batch, width]``."""

    input_names = ("input_ids", "attention_mask")
    notes: tuple[str, ...] = ()  # what was read off its files

    def __init__(self, model: nn.Module, modules: SentenceModules) -> None:
        super().__init__()
        self.model = model
        self.pooling, self.normalize = modules.pooling, modules.normalize
        self.dense = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(one.inputs, one.outputs, bias=one.bias), ACTIVATIONS[one.activation]())
                for one in modules.dense
            )
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return embeddings ``[batch, width]``."""
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]
        pooled: Tensor = self.dense(pool(tokens, attention_mask, self.pooling))
        return F.normalize(pooled, dim=1) if self.normalize else pooled


def pool(tokens: Tensor, mask: Tensor, modes: Sequence[str]) -> Tensor:
    """Return one vector a text.

    Args:
        tokens: ``[batch, length, width]``, padded on the right.
        mask: ``[batch, length]``, 1 where a token is.
        modes: Of ``MODES``; the vectors of several are joined.

    Returns:
        ``[batch, width * len(modes)]``.
    """
    kept = mask.unsqueeze(-1).to(tokens.dtype)
    count = kept.sum(dim=1).clamp(min=1e-9)
    found = []
    for mode in modes:
        if mode == "cls":
            found.append(tokens[:, 0])
        elif mode == "max":
            found.append(tokens.masked_fill(kept == 0, float("-inf")).amax(dim=1))
        elif mode == "lasttoken":
            last = (mask.sum(dim=1) - 1).clamp(min=0).to(torch.int64)
            found.append(tokens.gather(1, last.view(-1, 1, 1).expand(-1, 1, tokens.shape[2])).squeeze(1))
        elif mode == "weightedmean":
            weights = kept * torch.arange(1, tokens.shape[1] + 1, device=tokens.device).to(tokens.dtype).view(1, -1, 1)
            found.append((tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9))
        else:
            total = (tokens * kept).sum(dim=1)
            found.append(total / (count if mode == "mean" else count.sqrt()))
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def read_modules(name: str) -> SentenceModules:
    """Return what a model's ``modules.json`` says; the mean over the mask where there is none.

    Args:
        name: A folder, or a name on the hub.

    Raises:
        SourceError: It names a module that is not known here.
    """
    listed = _modules(name)
    if listed is None:
        alone = _object(name, "1_Pooling/config.json")
        return SentenceModules() if alone is None else SentenceModules(_modes(alone, name), stated=True)
    modes: tuple[str, ...] = ()
    dense: list[Dense] = []
    normalize, transformer = False, ""
    for module in listed:
        kind, folder = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Transformer":
            transformer = folder
        elif kind == "Pooling":
            modes = _modes(_object(name, f"{folder}/config.json") or {}, name)
        elif kind == "Dense" and not normalize:
            dense.append(_dense(_object(name, f"{folder}/config.json") or {}, folder, name))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Dropout":  # which does nothing once trained
            raise SourceError(
                f"hf:{name} has the sentence-transformers module {kind}, which is not known here", hint=WRAP
            )
    if not modes:
        raise SourceError(f"hf:{name} pools its tokens by no module: its output is no embedding of a text", hint=WRAP)
    return SentenceModules(modes, tuple(dense), normalize, transformer, stated=True)


def load_dense(embedder: SentenceEmbedder, name: str, modules: SentenceModules) -> None:
    """Give the dense layers the model's own weights.

    Raises:
        SourceError: They are not there, or have another shape.
    """
    for layer, said in zip(embedder.dense, modules.dense, strict=True):
        paths = [path for file in WEIGHTS if (path := _file(name, f"{said.folder}/{file}")) is not None]
        state = read(paths[0]) if paths else {}
        try:
            layer[0].load_state_dict({key.removeprefix("linear."): value for key, value in state.items()})  # type: ignore[index]
        except (RuntimeError, AttributeError):
            raise SourceError(
                f"hf:{name}: {said.folder} holds no weights of a layer {said.inputs} -> {said.outputs}",
                hint=SAVE_AGAIN,
            ) from None


def prompt_note(name: str) -> str | None:
    """Say that a model expects something before each text, which is not added here; None where it does not."""
    said = _object(name, "config_sentence_transformers.json") or {}
    prompts, default = said.get("prompts"), said.get("default_prompt_name")
    prompt = prompts.get(default) if isinstance(prompts, dict) and isinstance(default, str) else None
    return None if not prompt else f"its default prompt {prompt!r} is not put before the texts: write it into the data"


def _modes(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    said = config.get("pooling_mode")
    modes = (said,) if isinstance(said, str) else tuple(map(str, said)) if isinstance(said, list) else ()
    modes = modes or tuple(mode for key, mode in OLD_KEYS.items() if config.get(key)) or ("mean",)
    wrong = [mode for mode in modes if mode not in MODES]
    if wrong:
        raise SourceError(f"hf:{name} pools by {wrong[0]!r}; known are: {', '.join(MODES)}", hint=WRAP)
    return modes


def _dense(config: Mapping[str, Any], folder: str, name: str) -> Dense:
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS or config.get("use_residual"):
        what = "a residual connection" if config.get("use_residual") else f"the activation {activation}"
        raise SourceError(f"hf:{name}: its dense layer {folder} has {what}, which is not known here", hint=WRAP)
    widths = [config.get(key) for key in ("in_features", "out_features")]
    inputs, outputs = (width if type(width) is int and 0 < width <= WIDEST else 0 for width in widths)
    if not (inputs and outputs):
        raise SourceError(f"hf:{name}: {folder}/config.json does not say how wide its dense layer is", hint=SAVE_AGAIN)
    return Dense(inputs, outputs, bool(config.get("bias", True)), activation, folder)


def _modules(name: str) -> list[dict[str, Any]] | None:
    listed = _json(name, "modules.json")
    if listed is None or (isinstance(listed, list) and all(isinstance(module, dict) for module in listed)):
        return listed
    raise SourceError(f"hf:{name}: its modules.json is no list of modules", hint=SAVE_AGAIN)


def _object(name: str, file: str) -> dict[str, Any] | None:
    found = _json(name, file)
    if found is None or isinstance(found, dict):
        return found
    raise SourceError(f"hf:{name}: its {file} holds no JSON object", hint=SAVE_AGAIN)


def _json(name: str, file: str) -> Any:
    path = _file(name, file)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read as JSON: {error}", hint=SAVE_AGAIN) from None


def _file(name: str, file: str) -> Path | None:
    """Return a file of a model, or None where it has none (or none can be had offline)."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if os.path.isfile(path) else None  # noqa: PTH113 - false for what is no path
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        return None
    return None if found is None else Path(found)
