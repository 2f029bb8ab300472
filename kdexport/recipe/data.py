"""[data]: where samples come from, and what a network needs done to them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from kdexport import objects
from kdexport.recipe.section import Section, Side

MAX_PIXELS = 178_956_970  # of a picture: Pillow opens no larger one


class PreprocessingSpec(Section):
    """What the recipe says of a model's preprocessing; what is left out is inferred."""

    size: tuple[Side, Side] | None = Field(
        None,
        description=(
            "Height and width, in pixels, that the network takes. Left out: what the model itself states, "
            "else the size of the data."
        ),
    )
    resize: Literal["squash", "crop"] | None = Field(
        None,
        description=(
            "How an image becomes that size: squash ignores its aspect ratio, crop resizes the shorter "
            "side and cuts out the center. Left out: what the model states."
        ),
    )
    crop_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "With crop, the share of the resized shorter side that is kept: ImageNet's 224 of 256 is "
            "0.875. Left out: what the model states."
        ),
    )
    resample: Literal["bilinear", "bicubic"] | None = Field(
        None, description="The filter that resizes. Left out: what the model states, else bilinear."
    )
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = Field(
        None,
        description=(
            "Mean per channel, of pixels scaled to 0..1, which is subtracted. Left out: what the model "
            "states, else that of the training split."
        ),
    )
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(
        None,
        description=(
            "Standard deviation per channel, of pixels scaled to 0..1, which is divided by. Left out: "
            "what the model states, else that of the training split."
        ),
    )


class Data(Section):
    """[data]: where the samples come from and how they are split.

    In Python samples may stand for the reference or for the whole table: see ``kdexport.objects.splits_reference``.
    """

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take samples for the table or for its reference."""
        if isinstance(values, BaseModel):
            return values
        if not isinstance(values, dict) or "train" in values:
            return {"source": objects.splits_reference(values)}
        return {**values, "source": objects.splits_reference(values["source"])} if "source" in values else values

    source: str = Field(
        description=(
            "Where the samples come from: digits, imagefolder:DIR, npz:FILE, csv:FILE, table:FILE, torchvision:NAME, "
            "hf:NAME_OR_DIR, or file.py:Name, a function that returns the splits. A path is relative to "
            "the recipe."
        )
    )
    val_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the training split that becomes the validation split, where the source has none.",
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of all samples that becomes the test split, where the source has none."
    )
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the training split that is used; 1.0 is all of it.")
    root: str | None = Field(
        None, description="Folder that holds the files of a torchvision data set; a path is relative to the recipe."
    )
    download: bool = Field(
        False, description="Whether torchvision may download the data set into root. By default nothing is downloaded."
    )
    args: dict[str, Any] = Field(
        {}, description="Keyword arguments of the function that file.py:Name names, or of the torchvision class."
    )
    text_column: str = Field("text", description="Name of the column that holds the text, for csv and hf.")
    label_column: str = Field(
        "label", description="Name of the column that holds the label, for csv and hf; of hf data with masks, the mask."
    )
    text_columns: tuple[str, str] | None = Field(
        None,
        description=(
            "Names of the two columns that hold the texts of a pair, for csv with pairs and their scores. Left out: "
            "the two columns beside score_column, where the file has neither text_column nor label_column."
        ),
    )
    score_column: str = Field(
        "score", description="Name of the column that holds a pair's score, a number: how alike its two texts are."
    )
    on_bad_sample: Literal["fail", "skip"] = Field(
        "fail",
        description=(
            "What happens at a file that cannot be read: fail stops and names it, skip leaves it out and "
            "tells how many."
        ),
    )
    tokenizer: str | None = Field(
        None, description="Tokenizer of text, as hf:NAME_OR_DIR. Text from csv or hf needs one: usually the teacher's."
    )
    text_length: int = Field(128, ge=1, description="Number of tokens at which a text is cut.")
    standardize: bool | None = Field(
        None,
        description=(
            "Whether numeric features are brought to mean 0 and standard deviation 1 of the training samples; the ONNX "
            "file then does it itself. Left out: those of a table are, others are fed as they are."
        ),
    )
    label_columns: tuple[str, ...] = Field(
        (),
        description=(
            "Names of a table's columns that are to be estimated: one, or several for several numbers; also of the "
            "list of an image folder (metadata.csv or labels.csv). Left out: of a list all but the pictures' names."
        ),
    )
    feature_columns: tuple[str, ...] = Field(
        (), description="Names of a table's columns that are fed, in this order. Left out: all but label_columns."
    )
    unlabelled: str | None = Field(
        None,
        description=(
            "More images without labels, as imagefolder:DIR, that the student learns from through the "
            "teacher alone. Left out: none."
        ),
    )
    image_size: tuple[Side, Side] | None = Field(
        None,
        description=(
            "Height and width, in pixels, to which image files are decoded. Left out: what the networks need."
        ),
    )

    @field_validator("image_size")
    @classmethod
    def _no_larger_than_a_picture(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"{size[0]} x {size[1]} are more pixels than any picture's ({MAX_PIXELS:,})")
        return size
