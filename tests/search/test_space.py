"""Spaces become candidates, and a candidate the recipe that makes it alone."""

import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from kdexport.errors import KDExportError, RecipeError, SourceError
from kdexport.recipe import Recipe
from kdexport.search.space import Parameter, Spaces, one_of_each, recipe_of, variations
from kdexport.search.study import Study


def candidates(recipe, tmp_path):
    return Spaces(recipe.search, tmp_path).listed()


def test_every_combination_is_listed_once(recipe_with, tmp_path) -> None:
    recipe = recipe_with({"args": {"width": [4, 8, 8], "depth": {"low": 1, "high": 3}}}, {"args": {"width": 2}})
    found = one_of_each(candidates(recipe, tmp_path))
    assert len(found) == 2 * 3 + 1 == Spaces(recipe.search, tmp_path).size
    assert {(one.values.get("args.depth"), one.values["args.width"]) for one in found if one.space == 0} == {
        (depth, width) for depth in (1, 2, 3) for width in (4, 8)
    }
    assert found[0].label == "Net(depth=1, width=4)"


def test_ranges_hold_their_steps_and_ends() -> None:
    stepped = Parameter("args.m", low=0.25, high=1.0, step=0.25)
    assert stepped.values() == (0.25, 0.5, 0.75, 1.0)
    rng = np.random.default_rng(0)
    log = Parameter("args.w", low=1, high=1024, log=True, whole=True)
    drawn = [log.draw(rng) for _ in range(2000)]
    assert min(drawn) >= 1
    assert max(drawn) <= 1024
    assert all(isinstance(value, int) for value in drawn)
    assert 0.4 < np.mean([value < 32 for value in drawn]) < 0.6  # 32 is the middle of the magnitudes
    assert Parameter("prune.keep", low=0.1, high=0.8).size == math.inf


def test_endless_spaces_are_drawn_from_alike(recipe_with, nets, tmp_path) -> None:
    pruned = {"model": "teacher", "prune": {"keep": {"low": 0.1, "high": 0.9}}}
    wide = {"model": f"{nets}:Net", "args": {"width": {"low": 1, "high": 10**6}}}
    recipe = recipe_with(search__space=[wide, pruned])
    spaces = Spaces(recipe.search, tmp_path)
    assert spaces.listed() is None
    drawn = spaces.drawn(100, np.random.default_rng(0))
    assert [sum(one.space == space for one in drawn) for space in (0, 1)] == [50, 50]
    assert [one.key for one in drawn] == [one.key for one in spaces.drawn(100, np.random.default_rng(0))]


def test_a_candidate_s_recipe_has_its_student_and_no_search(recipe_with, tmp_path) -> None:
    recipe = recipe_with({"args": {"width": [4]}, "image_size": 16, "precision": ["fp32", "int8"]})
    (one,) = candidates(recipe, tmp_path)
    alone = recipe_of(one, recipe, tmp_path)
    assert alone.search is None
    assert (alone.student.args, alone.student.preprocessing.size) == ({"width": 4}, (16, 16))
    assert alone.student.model == recipe.search.space[0].model
    assert one.precisions == ("fp32", "int8")
    assert alone.distill == recipe.distill


def test_a_pruned_teacher_is_a_candidate(recipe_with, tmp_path) -> None:
    space = {"model": "teacher", "prune": {"keep": [0.3, 0.5], "importance": "random", "layers": ["a", "b"]}}
    recipe = recipe_with(search__space=[space])
    found = candidates(recipe, tmp_path)
    alone = [recipe_of(one, recipe, tmp_path).student for one in found]
    assert [one.prune.keep for one in alone] == [0.3, 0.5]
    assert {one.prune.layers for one in alone} == {("a", "b")}  # a list of blocks is one value, not two choices
    assert {one.model for one in alone} == {recipe.teacher.model}


def test_a_choice_may_be_a_list(recipe_with, tmp_path) -> None:
    recipe = recipe_with({"args": {"widths": [[8, 16], [16, 32]]}})
    students = [recipe_of(one, recipe, tmp_path).student for one in candidates(recipe, tmp_path)]
    assert [list(one.args["widths"]) for one in students] == [[8, 16], [16, 32]]


def test_a_pattern_names_the_models_of_a_family(recipe_with, tmp_path) -> None:
    recipe = recipe_with(search__space=[{"model": "torchvision:mobilenet_v3_*", "args": {"width_mult": [0.5, 1.0]}}])
    models = {one.values["model"] for one in candidates(recipe, tmp_path)}
    assert models == {"torchvision:mobilenet_v3_large", "torchvision:mobilenet_v3_small"}
    assert Spaces(recipe.search, tmp_path).size == 4
    with pytest.raises(SourceError, match=r"search.space\[0\].model: no model of torchvision is called like nothing\*"):
        Spaces(recipe_with(search__space=[{"model": "torchvision:nothing*"}]).search, tmp_path)


def test_timm_s_family_is_named_without_a_download(recipe_with, tmp_path) -> None:
    pytest.importorskip("timm")
    recipe = recipe_with(search__space=[{"model": "timm:mobilenetv3_small_0*"}])
    assert {one.values["model"] for one in candidates(recipe, tmp_path)} == {
        "timm:mobilenetv3_small_050",
        "timm:mobilenetv3_small_075",
    }


def test_finalists_vary_the_method(recipe_with, tmp_path) -> None:
    varied = {"temperature": [2.0, 8.0], "label_weight": [0.5], "method": ["soft_targets"]}
    recipe = recipe_with({"args": {"width": 4}}, search__finalists=varied)
    methods = variations(recipe.search)
    assert len(methods) == 2
    (base,) = candidates(recipe, tmp_path)
    distill = recipe_of(type(base)(base.space, base.values, base.precisions, methods[1]), recipe, tmp_path).distill
    assert (distill.label_weight, distill.terms[0].method, distill.terms[0].temperature) == (0.5, "soft_targets", 8.0)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"space": []}, "space is empty"),
        ({"budget": {}}, "limits nothing"),
        ({"space": [{"model": "teacher", "prune": {"keep": 0}}]}, "above 0 and below 1, e.g. 0.4, not 0"),
        ({"space": [{"model": "teacher", "prune": {"keep": {"low": 0.2, "high": 1}}}]}, "not 1"),
        ({"space": [{"model": "teacher", "prune": {"kep": 0.2}}]}, "prune.kep: unknown key; did you mean 'keep'"),
        ({"space": [{"model": "teacher"}]}, "says nothing of what is taken out"),
        ({"space": [{"model": "n.py:N", "args": {"width": []}}]}, "args.width is an empty list"),
        ({"space": [{"model": "n.py:N", "args": {"width": {"low": 4, "high": 2}}}]}, "low must not be above high"),
        ({"space": [{"model": "n.py:N", "args": {"width": {"low": 0, "high": 2, "log": True}}}]}, "low above 0"),
        ({"space": [{"model": "n.py:N", "args": {"width": {"low": 1}}}]}, "a range is"),
        ({"space": [{"model": "n.py:N", "precision": ["int9"]}]}, "there is no precision 'int9'"),
        ({"space": [{"model": "n.py:N", "image_size": [0]}]}, "a whole number of pixels, not 0"),
        ({"space": [{"model": "n.py:N", "prune": {"keep": 0.5}}]}, 'set model = "teacher"'),
    ],
)
def test_bad_spaces_are_told(recipe_with, search, words) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_with(**{f"search__{key}": value for key, value in search.items()})
    assert words in caught.value.message


def test_a_teacher_given_as_onnx_cannot_be_pruned(recipe_with) -> None:
    space = [{"model": "teacher", "prune": {"keep": 0.5}}]
    with pytest.raises(RecipeError, match=r"big.onnx cannot be pruned"):
        recipe_with(teacher={"model": "big.onnx"}, search__space=space)


def test_a_recipe_without_a_student_runs_only_as_a_search(recipe_with, tmp_path) -> None:
    from kdexport import RunDirectory, distill

    recipe = recipe_with({"args": {"width": 4}})
    assert recipe.student.model == "search"
    with pytest.raises(KDExportError, match="the recipe gives no student") as caught:
        distill(recipe, RunDirectory(tmp_path / "run"))
    assert "kdexport search" in caught.value.hint


def test_a_search_s_recipe_can_be_moved(recipe_with, nets, tmp_path) -> None:
    recipe = recipe_with({"args": {"width": [4, 8]}}, search__storage="sqlite:///here.db")
    recipe.write(tmp_path / "recipe.toml")
    text = (tmp_path / "recipe.toml").read_text()
    assert str(nets.parent) not in text
    assert Recipe.load(tmp_path / "recipe.toml").search == recipe.search


def test_the_guide_s_recipe_is_one(tmp_path) -> None:
    text = (Path(__file__).parents[2] / "models" / "GUIDES.md").read_text(encoding="utf-8")
    block = re.search(r"^```toml\n# search.toml\n(.*?)^```$", text, re.M | re.S)
    assert block is not None
    recipe = Recipe.parse(tomllib.loads(block[1]))
    assert Spaces(recipe.search, tmp_path).size == math.inf
    assert recipe.search.space[0].precision == ("fp32", "int8")


@pytest.mark.parametrize(
    "attributes",
    [
        {"candidate": {"space": "x"}},
        {"candidate": [1]},
        {"candidate": {"space": 0, "values": {}, "precisions": [], "method": {}}, "measured": {"files": 3}},
        {"candidate": {"space": 0, "values": {}, "precisions": [], "method": {}}, "rungs": {"ten": {}}},
    ],
)
def test_a_study_that_holds_what_no_search_writes_is_told(attributes, tmp_path) -> None:
    import optuna

    study = Study.__new__(Study)
    study._directory, study._study = tmp_path, optuna.create_study()
    study._study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs=attributes))
    with pytest.raises(KDExportError, match=f"^the study of {re.escape(str(tmp_path))} is damaged: "):
        study.entries()
