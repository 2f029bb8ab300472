"""``hf:NAME_OR_DIR``: transformers' classifiers of images and of text, and transformers that embed texts."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdexport.errors import SourceError
from kdexport.models.preprocessing import Preprocessing, resample_of
from kdexport.models.sentence import SentenceEmbedder, load_dense, prompt_note, read_modules
from kdexport.models.transformer_cut import Cut

MOST_LAYERS = 2000  # a configuration that asks for more is damaged
TEXT_NAMES = ("input_ids", "attention_mask")
WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)


class HuggingFaceClassifier(nn.Module):
    """A transformers classifier called with tensors: ``(pixel_values)`` or ``(input_ids, attention_mask)``."""

    def __init__(self, model: nn.Module, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        named = dict(zip(self.input_names, inputs, strict=False))
        return self.model(**named, return_dict=False)[0]  # type: ignore[no-any-return]


def has_weights(name: str, args: Mapping[str, Any]) -> bool:
    """Whether a model comes with its weights: not from a folder that holds its configuration alone, nor where the
    recipe's ``pretrained = false`` leaves them out.
    """
    pretrained = args.get("pretrained")
    if pretrained is not None:
        return bool(pretrained)
    return not Path(name).is_dir() or any((Path(name) / file).is_file() for file in WEIGHT_FILES)


def load_classifier(
    name: str, args: Mapping[str, Any], num_classes: int | None, cut: Cut | None = None
) -> tuple[nn.Module, tuple[str, ...] | None]:
    """Build a classifier from a model of the hub, or of a folder.

    Args:
        name: Of the hub, or a folder with ``config.json``.
        args: Changes to its configuration (``num_hidden_layers = 2``), and ``pretrained``: whether to take its weights,
            by default where there are any.
        num_classes: Of its head; a head of another width is made anew.
        cut: Which of its layers and tokens are wanted; it is then built without weights. None: all.

    Returns:
        The network, and the names of the weights that its files don't hold or hold in another shape: they are fresh;
        None where it comes without weights.

    Raises:
        SourceError: transformers is not installed, there is no such model, or it is no classifier.
    """
    transformers = import_transformers()
    changes = {key: value for key, value in args.items() if key != "pretrained"}
    if num_classes is not None:
        changes.setdefault("num_labels", num_classes)
    config = _loaded(transformers.AutoConfig, name, **changes)
    kind = type(config)
    image = kind in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if not image and kind not in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise SourceError(
            f"hf:{name} is a '{config.model_type}', which transformers has no image or text classifier of",
            hint="name a model for image or sequence classification, or wrap it yourself as file.py:Name",
        )
    auto = transformers.AutoModelForImageClassification if image else transformers.AutoModelForSequenceClassification
    input_names = ("pixel_values",) if image else TEXT_NAMES
    if cut is not None:
        network = HuggingFaceClassifier(_built(auto, name, cut.config(config, f"hf:{name}")), input_names)
        return network, None
    model, fresh = _with_weights(auto, name, config, has_weights(name, args))
    return HuggingFaceClassifier(model, input_names), fresh


def load_embedder(
    name: str, args: Mapping[str, Any], cut: Cut | None = None
) -> tuple[nn.Module, tuple[str, ...] | None]:
    """Build a network that embeds texts: a transformer and the pooling that its ``modules.json`` names.

    Arguments, result and errors as ``load_classifier``; a pooler that a classifier would use is left out.
    """
    transformers = import_transformers()
    modules = read_modules(name)
    where = {"subfolder": modules.transformer} if modules.transformer else {}
    changes = {key: value for key, value in args.items() if key != "pretrained"}
    config = _loaded(transformers.AutoConfig, name, **changes, **where)
    kind = type(config)
    if kind not in transformers.MODEL_MAPPING or kind in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise SourceError(
            f"hf:{name} is a '{config.model_type}', which is no transformer of text",
            hint="name a transformer of text, or wrap the network yourself as file.py:Name",
        )
    weights = has_weights(str(Path(name) / modules.transformer) if where and Path(name).is_dir() else name, args)
    fresh: tuple[str, ...] | None = None
    if cut is None:
        model, fresh = _with_weights(transformers.AutoModel, name, config, weights, **where)
    else:
        model = _built(transformers.AutoModel, name, cut.config(config, f"hf:{name}"))
    if config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
        fresh = None if fresh is None else tuple(item for item in fresh if not item.startswith("pooler."))
    embedder = SentenceEmbedder(model, modules)
    if cut is None and weights:
        load_dense(embedder, name, modules)
    prompt = prompt_note(name)
    embedder.notes = (f"hf:{Path(name).name}: {modules.text}", *((prompt,) if prompt else ()))
    return embedder, fresh


def _with_weights(auto: Any, name: str, config: Any, weights: bool, **where: str) -> tuple[Any, tuple[str, ...] | None]:
    """Return a model with the weights of its files, and the names of those that these lack; None: all."""
    if not weights:
        return _built(auto, name, config), None
    loading = {"ignore_mismatched_sizes": True, "output_loading_info": True, **where}
    model, info = _loaded(auto, name, config=config, **loading)
    mismatched = [str(item[0] if isinstance(item, tuple) else item) for item in info["mismatched_keys"]]
    return model.float(), tuple(sorted({*info["missing_keys"], *mismatched}))


def _built(auto: Any, name: str, config: Any) -> Any:
    """Return a model without weights.

    Raises:
        SourceError: Its configuration is none that can be built.
    """
    layers = getattr(config, "num_hidden_layers", 0)
    try:
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise ValueError(f"{layers} layers")
        return auto.from_config(config, trust_remote_code=False).float()
    except Exception as error:  # whatever a damaged configuration makes transformers and PyTorch raise
        raise SourceError(
            f"hf:{name} cannot be built as its config.json says: {_first_line(error)}",
            hint="give the model's own config.json, and args that go with it",
        ) from error


def label_names(name: str) -> tuple[str, ...] | None:
    """Return what a model's configuration calls its classes (``id2label``), in the order of its outputs, or None."""
    transformers = import_transformers()
    try:
        labels = dict(transformers.AutoConfig.from_pretrained(name, trust_remote_code=False).id2label or {})
        return tuple(str(labels[index]) for index in range(len(labels))) or None
    except Exception:  # noqa: BLE001 - said when the model is loaded
        return None


def image_preprocessing(name: str) -> Preprocessing | None:
    """Return what a model's image processor does, or None where it has none.

    Raises:
        SourceError: It does something that a ``Preprocessing`` cannot say.
    """
    transformers = import_transformers()
    try:
        settings, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # no preprocessor_config.json
        return None
    wanted = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    size = _pair(wanted) if settings.get("do_resize", True) or settings.get("do_center_crop") else None
    share = 1.0
    if settings.get("do_center_crop") and size is not None and settings.get("do_resize", True):
        share = min(size) / min(_pair(settings.get("size")) or size)
    elif settings.get("crop_pct"):  # ConvNeXT's processor: it resizes to size / crop_pct below 384, then cuts
        share = float(settings["crop_pct"]) if size is not None and min(size) < 384 else 1.0
    shape = settings.get("size") or {}
    cuts = bool(settings.get("do_center_crop")) or share != 1.0
    if settings.get("do_rescale", True) and abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise SourceError(
            f"hf:{name} scales pixels by {settings['rescale_factor']}, not by 1/255",
            hint="give its preprocessing (size, mean, std) in the recipe",
        )
    normalizes = settings.get("do_normalize", True)
    return Preprocessing(
        "image",
        size=size,
        resize="crop" if cuts or (isinstance(shape, dict) and "shortest_edge" in shape) else "squash",
        crop_share=share,
        mean=tuple(settings.get("image_mean") or ()) if normalizes else (),
        std=tuple(settings.get("image_std") or ()) if normalizes else (),
        resample=resample_of(settings.get("resample", 2)),
    )


def import_transformers() -> Any:
    """Import transformers, which is optional.

    Raises:
        SourceError: It is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise SourceError(
            "a Hugging Face model needs transformers, which is not installed", hint="pip install 'kdexport[text]'"
        ) from None
    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    library.logging.set_verbosity_error()
    return library


def _loaded(auto: Any, name: str, **options: Any) -> Any:
    try:
        return auto.from_pretrained(name, **{**options, "trust_remote_code": False})  # where it is not said, it asks
    except Exception as error:  # whatever a damaged configuration makes transformers raise
        if OWN_CODE.search(str(error)):
            raise own_code(f"hf:{name}") from None
        raise SourceError(
            f"hf:{name} cannot be loaded: {_first_line(error)}",
            hint="check the name and the args; offline, give a folder with its config.json and weights; "
            "a gated model needs `hf auth login`",
        ) from error


OWN_CODE = re.compile("contains custom code|requires you to execute")  # as transformers 5 and 4 say it


def own_code(reference: str) -> SourceError:
    """Say that a repository brings Python files that loading it would run."""
    return SourceError(
        f"{reference} holds code of its own (auto_map), and was not loaded: nothing in it was run",
        hint="where you trust it, load it yourself in a Python file, and name that as file.py:Name; a tokenizer: save "
        "its tokenizer.json with save_pretrained(DIR), and give hf:DIR",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _pair(size: Any) -> tuple[int, int] | None:
    """Return height and width of what a processor calls a size."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return None
