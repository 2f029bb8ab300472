"""The search's memory: an Optuna study, one trial per candidate, its whole state in the trial's attributes.

Whoever opens the study knows what is measured, trained and out, so that a killed search goes on, and several processes
share the work. Who works on a trial holds a lock file of it in the search's directory: it dies with its process.

    candidate, measured      before training: RUNNING
    out                      over the budget, or dropped at a rung, and why: PRUNED
    failed                   cannot be built, exported or measured, and why: FAIL
    rungs                    epochs -> score on validation and seconds
    trained                  in full: once it is measured and scored COMPLETE, its value the score on validation
"""

import contextlib
import os
import secrets
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdexport import results
from kdexport.artifacts import check_held, locked, write_text
from kdexport.errors import KDExportError, SourceError
from kdexport.recipe import Recipe
from kdexport.search.space import Candidate, Spaces

if TYPE_CHECKING:
    import optuna

OWN = ("recipe.toml", "search.json", "search.html", "finals.json", "study.db", "teacher", "trials", "picked", "cache")
TOKEN = ".search"  # in the search's directory: which study it belongs to
LOCKS = "locks"  # in the search's directory: a file for each piece of work that one process at a time does
RECIPE, DIRECTORY, PICKED = "kdexport.recipe", "kdexport.directory", "kdexport.picked"
LOCKED_S = 60.0  # that SQLite waits for another process


@dataclass(frozen=True)
class Entry:
    """One trial, as it stands."""

    number: int
    candidate: Candidate
    state: Literal["open", "out", "failed", "done"]
    measured: dict[str, Any] | None  # see ``measure.Measured``
    reason: str  # why it is out or failed
    rungs: dict[int, dict[str, Any]]  # epochs -> {"score", "seconds"}
    trained: dict[str, Any] | None  # in full: {"seconds", "epochs", "score"}
    begins_late: bool = False  # another method of a finalist: trains in full at once

    @property
    def label(self) -> str:
        """What people read."""
        return self.candidate.label


# As Optuna, SQLAlchemy, pydantic and json say that a storage holds what none of them wrote.
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class Study:
    """An Optuna study in the form that the search needs.

    Args:
        recipe: Of the search.
        directory: Of the search.
        key: Stands for all of the recipe that candidates and their scores depend on.
        maximize: Whether a higher score is better.

    Raises:
        KDExportError: Optuna is not installed, the storage cannot be reached, or belongs to another search.
    """

    def __init__(self, recipe: Recipe, directory: Path, key: dict[str, str], *, maximize: bool) -> None:
        self._directory = directory
        storage = None if recipe.search is None else recipe.search.storage
        self._own = storage is None
        self._study = open_study(recipe.name, storage, directory, maximize=maximize)
        self._claim(recipe.name, key)

    def _claim(self, name: str, key: dict[str, str]) -> None:
        """Hold that the study is this search's: of this recipe and this directory."""
        with self._whole():
            known = self._study.user_attrs
        token_file, said = self._directory / TOKEN, known.get(DIRECTORY)
        if (
            self._own
            and isinstance(said, str)
            and (not token_file.is_file() or token_file.read_bytes() != said.encode())
        ):
            write_text(token_file, said)  # it was damaged: the study lies beside it, and is no other directory's
        if not token_file.exists():
            if said:
                raise KDExportError(
                    f"the storage holds a search '{name}' of another directory than {self._directory}",
                    hint="give --out DIR of that search (on storage that all machines see) to take part in it, or give "
                    "this recipe another name",
                )
            write_text(token_file, secrets.token_hex(8))
        token = token_file.read_text(encoding="utf-8", errors="replace")
        if said not in (None, token):
            raise KDExportError(
                f"the storage holds a search '{name}' of another directory than {self._directory}",
                hint="give --out DIR of that search to go on with it, or give this recipe another name",
            )
        earlier = known.get(RECIPE)
        if earlier is not None and earlier != key:
            whole = earlier if isinstance(earlier, dict) else {}
            changed = ", ".join(part for part in key if whole.get(part) != key[part])
            raise KDExportError(
                f"the search in {self._directory} belongs to another recipe: {changed} differs",
                hint="choose another --out DIR (and with search.storage another name), or take the change back",
            )
        if earlier is None:
            self._study.set_user_attr(RECIPE, key)
            self._study.set_user_attr(DIRECTORY, token)

    def entries(self) -> list[Entry]:
        """Return all trials in the order of their numbers.

        Raises:
            KDExportError: The storage holds what no search writes.
        """
        with self._whole():
            trials = self._study.get_trials(deepcopy=False)
            return [_entry(trial) for trial in trials if "candidate" in trial.user_attrs]

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Turn what a storage that another hand changed makes Optuna raise into a message."""
        try:
            yield
        except DAMAGED as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise KDExportError(
                f"the study of {self._directory} is damaged: {reason}",
                hint="give it back from a copy, or search anew with another --out DIR (and another search.storage)",
            ) from error

    def add(self, candidate: Candidate, spaces: Spaces, **attributes: Any) -> None:
        """Add a candidate that is not there yet, whole at once: a kill leaves none in part."""
        import optuna

        params, distributions = _as_optuna(candidate, spaces)
        with _quiet():
            trial = optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=params,
                distributions=distributions,
                user_attrs={"candidate": candidate.to_json(), "label": candidate.label, **attributes},
            )
            self._study.add_trial(trial)

    def note(self, number: int, **attributes: Any) -> None:
        """Keep attributes of an open trial."""
        trial = self._trial(number)
        for name, value in attributes.items():
            trial.set_user_attr(name, value)

    def note_rung(self, entry: Entry, epochs: int, score: float, seconds: float) -> None:
        """Keep what a trial scores at a rung."""
        trial = self._trial(entry.number)
        rungs = {**entry.rungs, epochs: {"score": score, "seconds": seconds, "worker": worker()}}
        trial.report(score, epochs)
        trial.set_user_attr("rungs", {str(step): found for step, found in rungs.items()})

    def out(self, number: int, reason: str) -> None:
        """End a trial that is over the budget or is dropped."""
        self._end(number, "PRUNED", reason=reason)

    def failed(self, number: int, reason: str) -> None:
        """End a trial that cannot be built, exported or measured; for a directory that was taken away none can be."""
        check_held(self._directory)
        self._end(number, "FAIL", reason=reason)

    def finished(self, number: int, score: float) -> None:
        """End a trial that was trained in full."""
        self._end(number, "COMPLETE", value=score)

    def keep(self, name: str, value: Any) -> None:
        """Keep something of the whole search."""
        self._study.set_user_attr(f"kdexport.{name}", value)

    def kept(self, name: str) -> Any:
        """Return what ``keep`` kept; None where there is nothing."""
        return self._study.user_attrs.get(f"kdexport.{name}")

    @contextlib.contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold a piece of work alone among all processes of the search; give whether it could be had."""
        with alone(self._directory, name, wait=wait) as mine:
            yield mine

    def _trial(self, number: int) -> "optuna.trial.Trial":
        import optuna

        storage = self._study._storage
        identity = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        return optuna.trial.Trial(self._study, identity)

    def _end(self, number: int, state: str, value: float | None = None, reason: str | None = None) -> None:
        import optuna

        trial = self._study.get_trials(deepcopy=False)[number]
        if trial.state.is_finished():  # by another process that came to the same
            return
        if reason is not None:
            self._trial(number).set_user_attr("reason", reason)
        with _quiet():
            self._study.tell(number, value, state=optuna.trial.TrialState[state], skip_if_finished=True)


def check_own(directory: Path) -> None:
    """Hold that nothing of the user's would be replaced: files of a search's names where no search has been.

    Raises:
        KDExportError: There are some.
    """
    found = [name for name in OWN if (directory / name).is_file() or _holds_files(directory / name)]
    if found and not (directory / TOKEN).exists() and not (directory / LOCKS).exists():
        raise KDExportError(
            f"{directory} holds {', '.join(found)}, and no search has been there: it would be replaced",
            hint="choose another directory with --out DIR, or move it elsewhere",
        )


def _holds_files(folder: Path) -> bool:
    """Whether there is more below than what a search leaves whose directory was removed under it: folders and locks."""
    return any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*"))


@contextlib.contextmanager
def alone(directory: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a piece of a search's work alone; give whether it could be had. The hold ends with the process."""
    folder = directory / LOCKS
    check_held(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / name, wait=wait) as holder:
        yield holder is None


def worker() -> str:
    """Return what this process is called in the study."""
    return f"{socket.gethostname()}:{os.getpid()}"


def open_study(name: str, storage: str | None, directory: Path, *, maximize: bool) -> "optuna.Study":
    """Open or make the study.

    Raises:
        KDExportError: Optuna is not installed, or the storage cannot be reached.
    """
    check_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = storage or f"sqlite:///{directory / 'study.db'}"
    options: dict[str, Any] = {"connect_args": {"timeout": LOCKED_S}} if url.startswith("sqlite") else {}
    try:
        with _quiet():
            kept = optuna.storages.RDBStorage(url, engine_kwargs=options)
            return optuna.create_study(
                storage=kept,
                study_name=name,
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
            )
    except Exception as error:  # whatever a database's driver raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        driver = error.__cause__ or error.__context__
        if isinstance(driver, ModuleNotFoundError):  # of SQLAlchemy's choice, by the scheme
            raise KDExportError(
                f"search.storage = {_without_password(url)} needs a driver that is not installed: {driver.name}",
                hint=f"install the package that gives the module {driver.name}, or name another driver in the URL, "
                "e.g. postgresql+psycopg2://... or mysql+pymysql://...",
            ) from error
        raise KDExportError(
            f"the study cannot be opened in {_without_password(url)}: {reason}",
            hint="check search.storage: a URL as Optuna takes it, e.g. sqlite:///study.db or "
            "postgresql://USER:PASSWORD@HOST/NAME, whose driver is installed; left out, it is a file of the search",
        ) from error


@contextlib.contextmanager
def storage_faults() -> Iterator[None]:
    """Turn what a storage raises in the middle of a search into a message: its server is gone, its file was removed."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise KDExportError(
            f"the study's storage fails: {reason}",
            hint="see that it can be reached and written to, then give the same command again: nothing is done twice",
        ) from error


def check_optuna() -> None:
    """Hold that Optuna is there.

    Raises:
        SourceError: It is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise SourceError(
            "a search needs optuna, which is not installed here", hint="pip install 'kdexport[search]' (or optuna)"
        ) from error


def _entry(trial: "optuna.trial.FrozenTrial") -> Entry:
    from kdexport.search.measure import Measured

    attributes = trial.user_attrs
    if attributes.get("measured") is not None:
        results.from_json(Measured, attributes["measured"])
    states: dict[str, Literal["open", "out", "failed", "done"]] = {
        "COMPLETE": "done",
        "PRUNED": "out",
        "FAIL": "failed",
    }
    return Entry(
        number=trial.number,
        candidate=Candidate.from_json(attributes["candidate"]),
        state=states.get(trial.state.name, "open"),
        measured=attributes.get("measured"),
        reason=str(attributes.get("reason", "")),
        rungs={int(step): found for step, found in attributes.get("rungs", {}).items()},
        trained=attributes.get("trained"),
        begins_late=bool(attributes.get("begins_late")),
    )


def _as_optuna(candidate: Candidate, spaces: Spaces) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a candidate's values and what they were chosen from, as Optuna and its dashboard have them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    several = len(spaces.parameters) > 1
    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for parameter in spaces.parameters[candidate.space]:
        name = f"{candidate.space}.{parameter.name}" if several else parameter.name
        params[name] = candidate.values[parameter.name]
        if parameter.choices:
            distributions[name] = CategoricalDistribution(parameter.choices)
        elif parameter.whole:
            step = 1 if parameter.log else int(parameter.step or 1)
            distributions[name] = IntDistribution(int(parameter.low), int(parameter.high), parameter.log, step)
        else:
            distributions[name] = FloatDistribution(parameter.low, parameter.high, parameter.log, parameter.step)
    return params, distributions


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://...@{tail}" if at else url


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
