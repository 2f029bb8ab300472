"""What `kdexport bench` is asked to measure: models of runs and files, a recipe's settings, flags over them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kdexport import references
from kdexport.artifacts import RunDirectory, read_epochs, read_json
from kdexport.bench.stage import BenchRequest, dims_of
from kdexport.errors import KDExportError, whole_number
from kdexport.progress import Progress
from kdexport.recipe import Bench, Data, Recipe
from kdexport.results import ExportResult, ModelFile, from_json

if TYPE_CHECKING:
    from kdexport.data.samples import Dataset


def request_for(
    paths: Sequence[Path],
    flags: Mapping[str, Any],
    data: str | None,
    provider_options: Sequence[str],
    dims: Sequence[str],
    *,
    label_columns: Sequence[str] = (),
    task: str | None = None,
    inputs_file: Path | None,
    progress: Progress,
) -> BenchRequest:
    """Gather what is to be measured, from a run or from bare files.

    Args:
        paths: Run directories and ONNX files, the baseline first.
        flags: Keys of the recipe's [bench] by name; None leaves one as it is.
        data: What to score on; None: what a run's recipe says.
        provider_options: ``KEY=VALUE``, as typed.
        dims: ``NAME=N``, as typed.
        label_columns: Of the table that ``data`` names.
        task: What ``data`` are for; None: what the run's recipe, the files or the data say.
        inputs_file: Real inputs.
        progress: Where to say how it goes.

    Raises:
        KDExportError: A flag or a file is not what it should be.
    """
    if label_columns and data is None:
        raise KDExportError("--label-column is of --data, which is not given", hint="add --data table:FILE")
    if task is not None and data is None:
        raise KDExportError("--task is of --data, which is not given", hint="add --data REF, or leave --task out")
    models = _distinct_names([(path, model) for path in paths for model in _models(path)])
    run = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    recipe = _recipe(run) if run else None
    options = _pairs(provider_options, "--provider-option", "e.g. --provider-option enable_cuda_graph=1")
    settings = _settings(recipe, {**flags, "provider_options": options or None})
    dataset = _dataset(recipe, data, tuple(label_columns), task, [Path(model.file) for model in models], progress)
    return BenchRequest(
        models,
        settings,
        recipe.name if recipe else models[0].name,
        dataset=dataset,
        recipe=recipe.to_dict(relative_to=run) if recipe and run else None,
        training=tuple(read_epochs(RunDirectory(run).metrics)) if run else (),
        dims={**dims_of(dataset, settings), **_sizes(_pairs(dims, "--dim", "e.g. --dim sequence=64"))},
        inputs_file=inputs_file,
    )


def _distinct_names(pairs: list[tuple[Path, ModelFile]]) -> list[ModelFile]:
    """Put the folder's name before the name of models that several folders have."""
    names = [model.name for _, model in pairs]
    if len(set(names)) == len(names):
        return [model for _, model in pairs]
    folders = [(path if path.is_dir() else path.parent).resolve().name for path, _ in pairs]
    return [
        dataclasses.replace(model, name=f"{folder}/{model.name}")
        for folder, (_, model) in zip(folders, pairs, strict=True)
    ]


def _models(path: Path) -> list[ModelFile]:
    """Return the models of a run directory, or the one that an ONNX file is."""
    from kdexport.onnx.describe import describe_file

    if not path.is_dir():
        return [describe_file(path)]
    document = read_json(RunDirectory(path).stage("export"))
    if document is not None:
        document.pop("key", None)
        try:
            exported = from_json(ExportResult, document)
        except ValidationError:  # written by another version
            document = None
        else:
            return [dataclasses.replace(model, file=str(path / model.file)) for model in exported.models]
    raise KDExportError(
        f"{path} is not a run directory with exported models: it holds no readable export.json",
        hint=f"write it with `kdexport run RECIPE --out {path}`, or give the ONNX files themselves",
    )


def _recipe(folder: Path) -> Recipe | None:
    path = RunDirectory(folder).recipe
    return Recipe.load(path) if path.is_file() else None


def _settings(recipe: Recipe | None, flags: Mapping[str, Any]) -> Bench:
    """Return the recipe's [bench] with the flags over it."""
    base = recipe.bench.model_dump() if recipe else {}
    given = {
        key: tuple(value) if isinstance(value, list) else value for key, value in flags.items() if value is not None
    }
    try:
        return Bench.model_validate({**base, **given})
    except ValidationError as error:
        fault = error.errors()[0]
        flag = {"devices": "device", "batch_sizes": "batch-size", "timeout_s": "timeout"}.get(str(fault["loc"][0]))
        flag = flag or str(fault["loc"][0]).replace("_", "-")
        message = fault["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise KDExportError(f"--{flag} {fault['input']}: {message}", hint="see `kdexport bench --help`") from None


def _pairs(texts: Sequence[str], flag: str, example: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise KDExportError(f"{flag} {text!r} is not of the form NAME=VALUE", hint=example)
        pairs[name] = value
    return pairs


def _sizes(pairs: dict[str, str]) -> dict[str, int]:
    for name, value in pairs.items():
        if not whole_number(value):
            raise KDExportError(
                f"--dim {name}={value}: a size is a whole number from 1 on", hint=f"e.g. --dim {name}=64"
            )
    return {name: int(value) for name, value in pairs.items()}


def _dataset(
    recipe: Recipe | None,
    data: str | None,
    label_columns: tuple[str, ...],
    task: str | None,
    files: Sequence[Path],
    progress: Progress,
) -> "Dataset | None":
    """Load what the models are scored on: --data, else what the run's recipe says, else nothing."""
    if data is not None:
        chosen = Data(source=references.absolute(data, Path.cwd()), label_columns=label_columns)
    elif recipe is not None:
        chosen = recipe.data
    else:
        return None
    with progress.task("data"):
        from kdexport.data.datasets import cache_folder, load_data
        from kdexport.models.fitted_data import as_files_say
        from kdexport.models.own_vocabulary import data_for, with_own_vocabulary

        seed, task = (0, task) if recipe is None else (recipe.seed, task or recipe.task)
        chosen, task = as_files_say(data_for(chosen, files), task, files)
        dataset = load_data(chosen, seed, cache_folder(chosen), progress, task=task)
        return with_own_vocabulary(dataset, chosen, (), files)
