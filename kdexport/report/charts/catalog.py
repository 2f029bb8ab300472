"""Every picture of the report, in the order of the page. A line here and a module make a new one."""

from kdexport.report.charts import (
    batches,
    classes,
    confusion,
    curves,
    distributions,
    masks,
    operators,
    predictions,
    residuals,
    scatter,
    similarity,
)
from kdexport.report.charts.marks import Picture

PICTURES: tuple[Picture, ...] = (
    scatter.PICTURE,
    distributions.PICTURE,
    operators.PICTURE,
    batches.PICTURE,
    curves.PICTURE,
    classes.PICTURE,
    confusion.PICTURE,
    predictions.PICTURE,
    residuals.PICTURE,
    masks.PICTURE,
    similarity.PICTURE,
)
