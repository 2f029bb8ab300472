"""``hf:NAME_OR_DIR`` as data: Hugging Face datasets of pictures or of text, with one label a sample.

Those with a label image for each image are ``hub_masks``'s.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdexport.artifacts import key_of
from kdexport.data.hub_masks import mask_columns, masks_of
from kdexport.data.image_cache import Pictures, decode_once
from kdexport.data.samples import Reading, Source, Split
from kdexport.data.splits import split_folders
from kdexport.data.text import INPUT_NAMES, REGRESSION, encode, label_amounts, label_numbers, token_preprocessing
from kdexport.errors import SourceError, did_you_mean
from kdexport.recipe import Data
from kdexport.references import parse


def hugging_face_data(data: Data, reading: Reading) -> Source:
    """Return a data set of the hub, or of a folder (saved with ``save_to_disk``, or with files that it knows).

    ``data.args`` goes to ``datasets.load_dataset`` (``name`` is the configuration). A split whose labels are kept
    secret, as the test splits of GLUE are, counts as absent.

    Raises:
        SourceError: datasets is not installed, there is no such data set, or it has no such columns.
    """
    sets = _loaded(data)
    parts = {split: sets[found] for split, found in split_folders(list(sets), data.source).items()}
    if "train" not in parts:
        raise SourceError(f"{data.source} has the splits {', '.join(sets)}", hint="it needs one that is called train")
    columns = list(parts["train"].features)
    found_in = split_folders(list(sets), data.source)
    ignored = [name for name in sets if name not in found_in.values()]
    notes = [f"left out, for they are no split that is known: {', '.join(ignored)}"] if ignored else []
    with_masks = mask_columns(parts["train"].features, data, reading.task)
    if with_masks is not None:
        return masks_of(parts, *with_masks, data, reading, notes)
    label = _column("label_column", data.label_column, columns, data)
    secret = [split for split, found in parts.items() if split != "train" and set(found.unique(label)) == {-1}]
    parts = {split: found for split, found in parts.items() if split not in secret}
    notes = [f"the {found_in[split]} split has no labels (-1 throughout) and is left out" for split in secret] + notes
    feature = parts["train"].features[label]
    names = [split for split, found in parts.items() for _ in range(len(found))]
    said = [value for found in parts.values() for value in found[label]]
    if missing := sum(value is None for value in said):
        raise SourceError(f"{data.source}: {missing} samples have no label", hint="filter them out")
    labels: NDArray[Any]
    class_names: tuple[str, ...]
    if reading.task == REGRESSION:
        labels, class_names = label_amounts(said, data.source), (data.label_column,)
    elif hasattr(feature, "names"):  # ClassLabel: numbers with names of their own
        labels, class_names = np.asarray(said, dtype=np.int64), tuple(str(name) for name in feature.names)
    else:
        labels, class_names = label_numbers(said, data.source)
    origin = np.array(names)
    image = next((key for key, item in parts["train"].features.items() if type(item).__name__ == "Image"), None)
    if image is None:
        text = _column("text_column", data.text_column, columns, data)
        texts = ["" if value is None else str(value) for found in parts.values() for value in found[text]]
        empty = sum(not value.strip() for value in texts)
        notes += [f"{empty} of {len(texts)} texts are empty"] if empty else []
        whole = Split(encode(texts, data), labels, texts=np.array(texts, dtype=object))
        tokens = token_preprocessing(data)
        return _source(whole, origin, class_names, input_names=INPUT_NAMES, preprocessing=tokens, notes=tuple(notes))
    starts = np.cumsum([0, *(len(found) for found in parts.values())])

    def opened(index: int) -> Image.Image:
        part = int(np.searchsorted(starts, index, side="right")) - 1
        return list(parts.values())[part][int(index - starts[part])][image]  # type: ignore[no-any-return]

    stored = decode_once(
        Pictures([f"sample {index} of {data.source}" for index in range(len(labels))], opened),
        reading.cache / "images.u8",
        key_of([found._fingerprint for found in parts.values()]),
        size=data.image_size,
        skip_bad=data.on_bad_sample == "skip",
        needed=reading.needed,
        progress=reading.progress,
    )
    whole = Split((stored.images,), labels[stored.kept])
    return _source(
        whole,
        origin[stored.kept],
        class_names,
        skipped=stored.skipped,
        notes=(stored.note, *notes),
        warnings=stored.warnings,
    )


def _source(whole: Split, origin: Any, class_names: tuple[str, ...], **known: Any) -> Source:
    splits = {name: whole.select(np.flatnonzero(origin == name)) for name in dict.fromkeys(origin.tolist())}
    return Source(
        train=splits["train"], val=splits.get("val"), test=splits.get("test"), class_names=class_names, **known
    )


def _column(key: str, column: str, columns: list[str], data: Data) -> str:
    if column in columns:
        return column
    near = did_you_mean(column, columns) or f"it has: {', '.join(columns)}; "
    raise SourceError(f"{data.source} has no column '{column}'", hint=f"{near}set data.{key}")


def _loaded(data: Data) -> Any:
    try:
        import datasets
    except ImportError:
        raise SourceError(
            "hf: data needs the package datasets, which is not installed", hint="pip install 'kdexport[text]'"
        ) from None
    name = parse(data.source).target
    folder = Path(name)
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, **data.args)
    except Exception as error:
        raise SourceError(
            f"{data.source} cannot be loaded: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}",
            hint="check the name; offline, give a folder; a gated data set needs `hf auth login`",
        ) from error
    return found if isinstance(found, dict) else {"train": found}
