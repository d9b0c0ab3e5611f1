"""data=hf: what `datasets.load_dataset` reads: Parquet, image folders, webdataset, a hub id."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from vqgen.data.assemble import assemble
from vqgen.data.images import ImageData
from vqgen.data.listing import Rows
from vqgen.data.listing import split as split_by_name

_FILE_FORMATS = ("parquet", "imagefolder", "webdataset", "arrow", "json", "csv")  # need data.files
_VALIDATION = ("validation", "val", "valid", "test")  # splits; the first that exists validates
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "bytes")
_LABEL_COLUMNS = ("label", "labels", "class", "cls", "fine_label", "category")


def hf(
    *,
    path: str | None,
    files: Any = None,  # data_files: a path, pattern, list, or {train: ..., validation: ...}
    subset: str | None = None,  # of a hub id that has several
    split: str | None = None,  # the only one to use, like "train[:10%]"; None: as they are named
    image_column: str | None = None,  # None: found by type, then by name
    label_column: str | None = None,  # None: found by type, then by name; "none": unconditional
    val_fraction: float = 0.1,  # of the images, if there is no validation split
    split_seed: int = 0,  # which images validate; not the run's seed
    **options: Any,  # of assemble
) -> ImageData:
    """A data set of the Hugging Face `datasets` library, one image per row.

    The split `train` trains; validation, val, valid or test validates, the first there is, or else
    a part of `train`.
    Raises ValueError: nothing to load there, no network, no column of images, or labels that are
    no classes.
    """
    tables = _loaded(path, files=files, subset=subset, split=split)
    train_name = "train" if "train" in tables else next(iter(tables))
    val_name = next((key for key in _VALIDATION if key in tables and key != train_name), None)
    train = tables[train_name]
    image_column = _image_column(train, image_column)
    label_column = _label_column(train, label_column)
    class_names = _class_names(tables, label_column)

    def listed(key: str) -> Rows:
        return _rows(tables[key], key, image_column, label_column, class_names)

    if val_name is None:
        parts = split_by_name(listed(train_name), val_fraction=val_fraction, seed=split_seed)
    else:
        parts = listed(train_name), listed(val_name)
    chosen = " ".join(str(word) for word in (path, subset, split, files) if word is not None)
    return assemble(*parts, name=f"hf {chosen}", class_names=class_names, **options)


def _loaded(
    path: str | None, *, files: Any, subset: str | None, split: str | None
) -> dict[str, Any]:
    """-> tables by split."""
    if path is None or (path in _FILE_FORMATS and files is None):
        missing = "data.path" if path is None else "data.files"
        raise ValueError(
            f"wanted data.path and, for a file format, data.files, got no {missing}; type "
            "data.path=parquet 'data.files=DIR/*.parquet', or data.path=OWNER/NAME of the hub"
        )
    if path not in _FILE_FORMATS and not Path(path).exists():
        _reach_hub(path)
    try:
        tables: Any = datasets.load_dataset(path, subset, data_files=files, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        place = f"data.path={path}" + ("" if files is None else f" data.files={files}")
        raise ValueError(
            f"wanted images from {place}, got: {_first_line(error)}; "
            "check data.path, data.files, data.subset and data.split"
        ) from None
    return {split: tables} if split is not None else dict(tables)


def _reach_hub(path: str) -> None:
    """Raise ValueError at once where there is no network: load_dataset tries for half a minute."""
    try:
        HfApi().dataset_info(path, timeout=10)
    except (OfflineModeIsEnabled, HfHubHTTPError, HFValidationError):
        return  # load_dataset knows its cache, and says which name is wrong
    except Exception as error:  # the HTTP library's own, which differs by version of the hub client
        raise ValueError(
            f"wanted data.path={path}, which is no folder here, from the Hugging Face hub, got no "
            f"connection ({_first_line(error)}); check the name and the network, set "
            "HF_HUB_OFFLINE=1 if it was downloaded before, or type data=emoji"
        ) from None


def _image_column(table: Any, asked: str | None) -> str:
    columns = list(table.column_names)
    if asked is not None and asked not in columns:
        raise ValueError(
            f"wanted data.image_column={asked}, got columns {columns}; type one of them"
        )
    typed = [key for key in columns if isinstance(table.features[key], datasets.Image)]
    named = [key for key in _IMAGE_COLUMNS if key in columns]
    found = [asked] if asked is not None else typed or named
    if not found:
        raise ValueError(
            f"wanted a column of images, got columns {columns}; type data.image_column=NAME"
        )
    return found[0]


def _label_column(table: Any, asked: str | None) -> str | None:
    columns = list(table.column_names)
    if asked == "none":
        return None
    if asked is not None and asked not in columns:
        raise ValueError(
            f"wanted data.label_column={asked}, got columns {columns}; type one of them or none"
        )
    if asked is not None:
        return asked
    typed = [key for key in columns if isinstance(table.features[key], datasets.ClassLabel)]
    named = [key for key in _LABEL_COLUMNS if key in columns]
    if len(typed) > 1 and not set(typed) & set(named):
        raise ValueError(
            f"wanted one column of classes, got {typed}; type data.label_column={typed[0]}"
        )
    preferred = [key for key in named if key in typed] or typed or named
    return preferred[0] if preferred else None


def _class_names(tables: dict[str, Any], column: str | None) -> Sequence[str]:
    """The ClassLabel's names; the sorted texts; or 0 ... largest for plain integers."""
    if column is None:
        return ()
    feature = next(iter(tables.values())).features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    values = set().union(*(table.unique(column) for table in tables.values())) - {None}
    values = sorted(values, key=lambda value: (str(type(value)), value))
    if values and all(isinstance(value, str) for value in values):
        return tuple(values)
    if values and all(isinstance(value, int) for value in values):
        return tuple(str(value) for value in range(max(values) + 1))
    raise ValueError(
        f"wanted classes as integers or texts in column {column}, got {values[:3]}; "
        "type data.label_column=NAME or data.label_column=none"
    )


def _rows(
    table: Any, key: str, image_column: str, label_column: str | None, class_names: Sequence[str]
) -> Rows:
    labels = None
    if label_column is not None:
        values = table.with_format(None)[label_column][:]
        known: dict[Any, int] = {name: index for index, name in enumerate(class_names)}
        known |= {index: index for index in range(len(class_names))}  # already an index
        # -1 is "no class": a missing label, or the data set's own -1
        labels = np.array([known.get(value, -1) for value in values], dtype=np.int64)
    try:
        images = table.select_columns([image_column]).cast_column(
            image_column, datasets.Image(decode=False)
        )
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's casts raise all
        raise ValueError(
            f"wanted images in column {image_column}, got {table.features[image_column]} "
            f"({_first_line(error)}); type data.image_column=NAME"
        ) from None
    return Rows(
        _Column(images, image_column), [f"{key}[{row}]" for row in range(len(table))], labels
    )


class _Column:
    """One column of a table, row by row."""

    def __init__(self, table: Any, column: str) -> None:
        self.table = table
        self.column = column

    def __getitem__(self, index: int) -> Any:
        return self.table[index][self.column]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
