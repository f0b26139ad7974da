"""What to train, validated: from TOML or from Python."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from attncompare.storage.spec import Count, Spec

TUTORIAL_CNN = "tutorial_cnn"
Rate = Annotated[float, Field(gt=0, lt=1e3, allow_inf_nan=False)]


class Gates(BaseModel):
    """Where squeeze-and-excitation goes: behind the modules of these paths."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: tuple[str, ...] = Field(min_length=1)
    reduction: Count = 16


class TrainSpec(Spec):
    """A training, as one immutable value; SpecError for an unknown key or a value that is not allowed.

    data: "shapes", a folder with one sub-folder of images per class (or with train/, val/ and test/ of such), or
    "torchvision:NAME" (in `root`; `download` allows to fetch it). Where there is no validation part, a tenth of the training
    images is held out for it; with val/ and no test/, val/ is the test and a tenth of train/ validates. train_images,
    validation_images, test_images: how many shapes to draw (8000, 1000, 2000), at most how many of other data. augment:
    random flips, and crops after padding by an eighth.
    model: "tutorial_cnn" (three blocks of 32, 64, 128 channels) or any name of `load_model`, with as many classes as the
    data has; "@random" starts from weights drawn with the seed. size: side of the images in pixels; the tutorial's CNN has
    64 without it, another model its own. squeeze_excite: {layers = [...], reduction = 16}.
    Adam; the rate is multiplied by `factor` where the validation accuracy has not risen for more than `patience` epochs;
    `early_stop` epochs without a new best end the training. The best epoch's weights are kept.

    >>> TrainSpec(squeeze_excite={"layers": ["block1"]}).squeeze_excite.reduction
    16
    """

    data: str = "shapes"
    root: str = "data"
    download: bool = False
    train_images: Count | None = None
    validation_images: Count | None = None
    test_images: Count | None = None
    augment: bool = False
    model: str = TUTORIAL_CNN
    size: int | None = Field(default=None, strict=True, ge=8, le=4096)
    squeeze_excite: Gates | None = None
    epochs: Count = 50
    batch_size: Count = 64
    learning_rate: Rate = 1e-3
    weight_decay: float = Field(default=0.0, ge=0, lt=1e3)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    patience: int = Field(default=3, strict=True, ge=0, le=1_000_000)
    factor: float = Field(default=0.5, gt=0, lt=1)
    early_stop: Count | None = 10
    seed: int = Field(default=0, strict=True, ge=0, le=2**31 - 1)
    device: str = "cpu"
    threads: int | None = Field(default=None, strict=True, ge=1, le=1024)

    @property
    def identity(self) -> str:
        """Everything in it that decides the weights, as JSON."""
        return self.model_dump_json(exclude={"device", "threads", "root", "download", "test_images"})
