"""Recipes: validated whole, overridden, written back."""

import re
from pathlib import Path

import pytest

from kdexport.errors import RecipeError
from kdexport.recipe import Recipe

DIGITS = Path(__file__).parents[1] / "models" / "digits" / "recipe.toml"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_the_digits_recipe_is_what_it_says() -> None:
    recipe = Recipe.load(DIGITS)
    assert recipe.teacher.train is not None
    assert (recipe.teacher.train.epochs, recipe.distill.label_weight) == (15, 0.1)
    assert recipe.student.model == f"{DIGITS.parent.resolve()}/nets.py:Student"


def test_overrides_reach_tables_and_entries_of_lists() -> None:
    recipe = Recipe.load(
        DIGITS, ["distill.epochs=3", "distill.terms.0.temperature=2.5", "name=other", "data.args.deep.key=true"]
    )
    assert recipe.distill.epochs == 3
    assert recipe.distill.terms[0].model_dump()["temperature"] == 2.5
    assert recipe.name == "other"
    assert recipe.data.args == {"deep": {"key": True}}


@pytest.mark.parametrize("override", ["epochs", "=3", "name.x=1", "distill.terms.7.weight=1.0", "distill..epochs=1"])
def test_an_override_that_cannot_be(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(DIGITS, [override])
    assert "e.g." in caught.value.hint


def test_a_resolved_recipe_gives_the_same_recipe(tmp_path: Path) -> None:
    recipe = Recipe.load(DIGITS, ["seed=7"])
    recipe.write(tmp_path / "run" / "recipe.toml")
    text = (tmp_path / "run" / "recipe.toml").read_text()
    assert '"/' not in text, "a moved run directory would lose its networks"
    assert Recipe.load(tmp_path / "run" / "recipe.toml") == recipe


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
sed = 1
name = "x"
[data]
source = "digits"
val_fraction = 1.5
[teacher]
model = "a.py:B"
[teacher.train]
epohs = 3
[distill]
batch_size = true
[[distill.terms]]
method = "soft_target"
[[distill.terms]]
method = "soft_targets"
temprature = 2
""",
    )
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    message = caught.value.message
    for part in (
        "7 faults",
        "sed: unknown key; did you mean 'seed'?",
        "data.val_fraction: should be less than 1",
        "teacher.train.epohs: unknown key; did you mean 'epochs'?",
        "student: missing",
        "distill.batch_size: should be a valid integer, not True",
        "distill.terms[0].method: no method is called 'soft_target'; did you mean 'soft_targets'?",
        "distill.terms[1].temprature: unknown key; did you mean 'temperature'?",
    ):
        assert part in message


def test_a_key_one_table_too_high_is_told_its_place() -> None:
    base = {"name": "x", "data": {"source": "digits"}, "teacher": {"model": "a.py:A"}, "student": {"model": "a.py:B"}}
    with pytest.raises(RecipeError, match=r"teacher\.epochs: unknown key; did you mean teacher\.train\.epochs\?"):
        Recipe.parse({**base, "teacher": {"model": "a.py:A", "epochs": 3}})
    with pytest.raises(RecipeError, match=r"epochs: unknown key; did you mean distill\.epochs\?"):
        Recipe.parse({**base, "epochs": 3})
    with pytest.raises(RecipeError, match=r"student\.quantize: unknown key; known here: args, "):
        Recipe.parse({**base, "student": {"model": "a.py:B", "quantize": ["int8"]}})


@pytest.mark.parametrize(
    ("text", "message"),
    [("name = ", "is not TOML"), ("", "4 faults"), ('name = "../x"\n', "name: ")],
)
def test_a_recipe_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace(".", r"\.")):
        Recipe.load(write(tmp_path, text))


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe at"):
        Recipe.load(tmp_path / "none.toml")


def test_a_student_with_nothing_to_learn() -> None:
    with pytest.raises(RecipeError, match="would learn nothing"):
        Recipe.load(DIGITS, ["distill.label_weight=0.0", "distill.terms.0.weight=0.0"])


@pytest.mark.parametrize("key", ["distill.terms[0].temperature", "distill.terms.0.temperature"])
def test_a_term_is_set_under_the_name_that_faults_give_it(key: str) -> None:
    document = {
        "name": "x",
        "data": {"source": "digits"},
        "teacher": {"model": "nets.py:Big"},
        "student": {"model": "nets.py:Small"},
    }
    (term,) = Recipe.parse(document, overrides=[f"{key}=2.5"]).distill.terms  # the default one, changed
    assert (term.method, term.options()["temperature"]) == ("dist", 2.5)
    document["distill"] = {"terms": [{"method": "soft_targets"}, {"method": "dkd"}]}
    both = Recipe.parse(document, overrides=[f"{key.replace('0', '1')}=3.0"]).distill.terms
    assert [term.options()["temperature"] for term in both] == [4.0, 3.0]
    with pytest.raises(RecipeError, match=r"distill.terms\[1\].temperature"):
        Recipe.parse(document, overrides=[f"{key.replace('0', '1')}=-1.0"])


def test_a_loss_of_ones_own_is_a_path_that_moves_with_the_recipe(tmp_path: Path) -> None:
    document = {
        "name": "x",
        "data": {"source": "digits"},
        "teacher": {"model": "nets.py:Big"},
        "student": {"model": "nets.py:Small"},
        "distill": {"terms": [{"method": "mine.py:margin", "scale": 2.0, "weight": 0.5}]},
    }
    recipe = Recipe.parse(document, base=tmp_path)
    (term,) = recipe.distill.terms
    assert (term.method, term.weight, term.options()) == (f"{tmp_path}/mine.py:margin", 0.5, {"scale": 2.0})
    recipe.write(tmp_path / "run" / "recipe.toml")
    assert "../mine.py:margin" in (tmp_path / "run" / "recipe.toml").read_text()
    assert Recipe.load(tmp_path / "run" / "recipe.toml") == recipe


def test_a_learning_rate_that_was_left_out_stays_left_out(tmp_path: Path) -> None:
    """What fits depends on the network: a resolved recipe that named the default would ruin a transformer."""
    document = {
        "name": "x",
        "data": {"source": "digits"},
        "teacher": {"model": "nets.py:Big", "train": {"epochs": 2}},
        "student": {"model": "nets.py:Small"},
    }
    Recipe.parse(document, base=tmp_path).write(tmp_path / "recipe.toml")
    loaded = Recipe.load(tmp_path / "recipe.toml")
    assert loaded.teacher.train is not None
    assert "lr" not in loaded.distill.model_fields_set | loaded.teacher.train.model_fields_set
    assert loaded.distill.lr == loaded.teacher.train.lr == 0.002


DEEP = "[" * 1000 + "]" * 1000
WHOLE = 'name = "x"\n[data]\nsource = "digits"\n[teacher]\nmodel = "nets.py:T"\n[student]\nmodel = "nets.py:S"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{WHOLE}args = {{ a = {DEEP} }}\n", "nests deeper than 32 levels"),
        (f"{WHOLE}[student.args.{'.'.join('a' * 1000)}]\nb = 1\n", "nests deeper than 32 levels"),
        (f"{WHOLE}args = {{ a = {'9' * 5000} }}\n", "4300 digits"),
        (f"{WHOLE}args = {{ a = {'9' * 30} }}\n", "student.args.a is an integer beyond 64 bits"),
        (f"{WHOLE}args = {{ a = [1.0, nan] }}\n", r"student.args.a.1 is not a number \(NaN\)"),
        (WHOLE.replace("nets.py:S", "nets\\u0000.py:S"), "student.model holds what is no text"),
    ],
)
def test_values_that_nothing_can_walk_into_or_hold(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        Recipe.load(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a." * 3000 + "b=1", "nests deeper"),
        (f"student.args.a={DEEP}", "is no value of a recipe"),
        (f"seed={'9' * 5000}", "is no value of a recipe"),
        ("student.model=\udcff.py:S", "student.model holds what is no text"),
        ("distill.terms.².weight=1", "is not one of the 1 entries"),
        (f"distill.terms.{'1' * 5000}.weight=1", "is not one of the 1 entries"),
        ("seed=1\nname='other'", "sets more than one key"),
        ("data.image_size=[30000,30000]", "more pixels than any picture"),
        ("data=[1]", "train is a int, not samples"),
    ],
)
def test_overrides_that_nothing_can_walk_into_or_hold(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(WHOLE)
    with pytest.raises(RecipeError, match=message):
        Recipe.load(tmp_path / "recipe.toml", [override])


@pytest.mark.parametrize(
    ("value", "within"),
    [
        ("distill=3", "distill.terms.0.weight=1"),
        ("distill=[1]", "distill.terms[0]=1"),
        ("distill.terms=['a']", "distill.terms.0.weight=1"),
        ("teacher.also=[3]", "teacher.also.0.model='a'"),
        ("search.space=[3]", "search.space.0.args.width=[1]"),
    ],
)
def test_an_override_within_a_value_that_is_no_table_is_refused(value: str, within: str) -> None:
    with pytest.raises(
        RecipeError, match=r"is a value, not a table|is not one of the 1 entries|is not of the form"
    ) as caught:
        Recipe.load(DIGITS, [value, within])
    assert caught.value.hint


def test_the_home_of_nobody_is_a_path_like_another(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(WHOLE.replace("nets.py:S", "~nobody-of-that-name/nets.py:S"))
    model = Recipe.load(tmp_path / "recipe.toml").student.model
    assert model == f"{tmp_path}/~nobody-of-that-name/nets.py:S"


@pytest.mark.parametrize("value", ["1e-320", "3", "true", "2026-11-26", "12:30:00"])
def test_a_source_that_is_no_text_is_told_its_place(value: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.source") as caught:
        Recipe.load(DIGITS, [f"data.source={value}"])
    assert caught.value.hint


@pytest.mark.parametrize("key", ["distill.lr", "distill.label_weight", "data.fraction", "require.max_drop"])
def test_a_number_without_end_is_a_fault(key: str) -> None:
    with pytest.raises(RecipeError, match=f"{re.escape(key)}: should be a finite number, not inf"):
        Recipe.load(str(DIGITS), [f"{key}=inf"])


def test_a_recipe_says_whose_code_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("import helper\nfrom torch import nn\n")
    (tmp_path / "helper.py").write_text("")
    document = {
        "name": "r",
        "data": {"source": "data.py:splits"},
        "teacher": {"model": "my.nets:Big", "weights": "a.pt"},
        "student": {"model": "nets.py:Net"},
        "distill": {"terms": [{"method": "loss.py:own"}], "augment": ["shift", "aug.py:mine"]},
        "scores": ["scores.py:f1"],
    }
    code = Recipe.parse(document, base=tmp_path).code()
    assert code == ("runs the code of data.py, the module my.nets, helper.py, nets.py, loss.py, scores.py, aug.py")
    own = {"teacher": {"model": "torchvision:resnet18"}, "student": {"model": "torchvision:resnet18"}}
    assert Recipe.parse({"name": "r", "data": {"source": "digits"}, **own}).code() == ""
