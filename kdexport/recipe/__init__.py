"""What the user asks for. OPEN FIRST: ``document``, the whole recipe; then a module per table."""

from kdexport.recipe.data import Data, PreprocessingSpec
from kdexport.recipe.document import EvaluationRequest, Recipe, StandaloneExport
from kdexport.recipe.measuring import Bench, Export, Require
from kdexport.recipe.networks import CORPUS, SEARCHED, TEACHER, NetworkSpec, Prune, Student, Teacher, TeacherSpec
from kdexport.recipe.search import RANGE, Budget, Search, SearchFinalists, SearchSpace, is_range, values_of
from kdexport.recipe.section import DAY, Count, Section, Side
from kdexport.recipe.training import DataFree, Distill, Training

__all__ = [
    "CORPUS",
    "DAY",
    "RANGE",
    "SEARCHED",
    "TEACHER",
    "Bench",
    "Budget",
    "Count",
    "Data",
    "DataFree",
    "Distill",
    "EvaluationRequest",
    "Export",
    "NetworkSpec",
    "PreprocessingSpec",
    "Prune",
    "Recipe",
    "Require",
    "Search",
    "SearchFinalists",
    "SearchSpace",
    "Section",
    "Side",
    "StandaloneExport",
    "Student",
    "Teacher",
    "TeacherSpec",
    "Training",
    "is_range",
    "values_of",
]
