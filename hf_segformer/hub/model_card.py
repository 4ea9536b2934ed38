# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of a SegFormer: text, and the metadata that the Hub shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData

from ..configuration_segformer import SegformerConfig
from ..texts import TEXT_LIMIT, code_span, fenced, markdown_text, one_line, public_path, table_row, without_paths

_METRIC_NAMES = {"mean_iou": "mIoU", "mean_accuracy": "mAcc", "overall_accuracy": "aAcc"}
_CALLS = {
    "SegformerForSemanticSegmentation": """from transformers import pipeline

segment = pipeline("image-segmentation", model={model})
for region in segment("image.jpg"):
    print(region["label"], region["mask"].size)""",
    "SegformerForImageClassification": """from transformers import pipeline

classify = pipeline("image-classification", model={model})
print(classify("image.jpg"))""",
    "SegformerModel": """from PIL import Image
from transformers import AutoImageProcessor, AutoModel

image_processor = AutoImageProcessor.from_pretrained({model})
model = AutoModel.from_pretrained({model})
outputs = model(**image_processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt"))
print(outputs.last_hidden_state.shape)""",
}
_CALLS["SegformerBackbone"] = _CALLS["SegformerModel"]
_ORIGIN = "[SegFormer](https://arxiv.org/abs/2105.15203), for the classes of `transformers`."
# Around the example, so that it can be found again.
_MARKS = "<!-- use -->", "<!-- /use -->"


def model_card(
    model: str,
    dataset: str | None = None,
    metrics: dict[str, Any] | None = None,
    class_table: str | None = None,
    training: dict[str, Any] | None = None,
    picture: str | None = None,
    *,
    config: SegformerConfig | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    dataset_id: str | None = None,
    split: str = "validation",
    protocol: str | None = None,
    base_model: str | None = None,
    with_code: bool = False,
) -> str:
    """Text of a model card, with the metadata the Hub shows.

    Every text is bounded and shows as itself, whatever Markdown or HTML is in it; absolute paths lose their folders.

    Args:
        model: Folder or repository id of the model, for the example.
        dataset: Name of the data set it was trained and evaluated on.
        metrics: Any of `mean_iou`, `mean_accuracy` and `overall_accuracy`, in [0, 1]; None and nan are left out.
        class_table: Per-class results as text.
        training: Settings of the training run.
        picture: Relative path of an overlay picture.
        config: Configuration of the model, for an example that fits its head.
        license: Licence of the weights, an identifier of the Hub such as "apache-2.0" or "other".
        license_name: Name of the licence where `license` is "other".
        license_link: Its address.
        dataset_id: Hub id of the data set, if it is there.
        split: Split the metrics were computed on.
        protocol: How the metrics were computed: resizing, window, scales.
        base_model: Hub id of the model that was fine-tuned.
        with_code: Whether the repository holds the code of the classes.

    Returns:
        Markdown with a YAML header; its `model-index` is computed by `huggingface_hub`.

    Raises:
        ValueError: There are metrics but no data set.
    """
    values = {name: metrics[name] for name in _METRIC_NAMES if metrics and _is_number(metrics.get(name))}
    if values and not dataset:
        raise ValueError("dataset must name the data set of the metrics, got None: metrics without one say nothing")
    dataset, base_model, where = _shown(dataset), _shown(base_model), (_shown(split), _shown(protocol))
    results = _results(values, _task(config), dataset, dataset_id, *where)
    licence = {"license": license, "license_name": license_name, "license_link": license_link}
    data = _metadata(config, dataset, dataset_id, base_model, results, licence)
    heading = f"# SegFormer on {markdown_text(dataset)}" if dataset else "# SegFormer"
    sections = [f"---\n{data.to_yaml()}\n---", heading, _ORIGIN]
    if picture:
        sections.append(f"![image and prediction]({quote(picture, errors='surrogateescape')})")
    sections += ["## Use", _use_section(model, config, with_code)]
    sections += _results_section(values, *where, class_table) + _training_section(training)
    return "\n\n".join(sections) + "\n"


def _task(config: SegformerConfig | None) -> str:
    return "image-classification" if _head(config) == "SegformerForImageClassification" else "image-segmentation"


def _results(
    values: dict[str, float],
    task: str,
    dataset: str | None,
    dataset_id: str | None,
    split: str | None,
    protocol: str | None,
) -> list[EvalResult]:
    metric_args = {"protocol": protocol} if protocol else None
    where = (task, one_line(dataset_id or dataset or ""), dataset or "")
    return [
        EvalResult(*where, name, value, metric_name=_METRIC_NAMES[name], dataset_split=split, metric_args=metric_args)
        for name, value in values.items()
    ]


def _metadata(
    config: SegformerConfig | None,
    dataset: str | None,
    dataset_id: str | None,
    base_model: str | None,
    results: list[EvalResult],
    licence: dict[str, str | None],
) -> ModelCardData:
    task, limits = _task(config), {"license_link": 2000}
    terms: dict[str, Any] = {
        name: text and one_line(text, limits.get(name, TEXT_LIMIT)) for name, text in licence.items()
    }
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task if _head(config).startswith("SegformerFor") else "image-feature-extraction",
        tags=["segformer", "vision"] + (["semantic-segmentation"] if task == "image-segmentation" else []),
        model_name=f"SegFormer on {dataset}" if dataset else "SegFormer",
        eval_results=results or None,
        datasets=[one_line(dataset_id)] if dataset_id else None,
        base_model=base_model,
        **terms,
    )


def _results_section(
    values: dict[str, float], split: str | None, protocol: str | None, class_table: str | None
) -> list[str]:
    if not values:
        return []
    rows = [(_METRIC_NAMES[name], f"{100 * value:.2f}") for name, value in values.items()]
    sections = [f"## Results on the {markdown_text(split)} split", _table(("metric", "%"), rows)]
    sections += [f"Protocol: {markdown_text(protocol)}."] if protocol else []
    return sections + ([fenced(class_table)] if class_table else [])


def _training_section(training: dict[str, Any] | None) -> list[str]:
    if not training:
        return []
    settings = [(code_span(name), markdown_text(without_paths(value))) for name, value in training.items()]
    return ["## Training", _table(("setting", "value"), settings)]


def _shown(text: str | None) -> str | None:
    return None if text is None else one_line(public_path(text))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _table(header: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [header, ("--", "--"), *rows]
    return "\n".join(map(table_row, lines))


def _head(config: SegformerConfig | None) -> str:
    """Class name of the model, semantic segmentation where nothing says otherwise."""
    names = (config.architectures if config is not None else None) or ["SegformerForSemanticSegmentation"]
    return names[0]


def _use_section(model: str, config: SegformerConfig | None, with_code: bool) -> str:
    call = _CALLS[_head(config)].format(model=json.dumps(public_path(model), ensure_ascii=False))
    if config is not None and config.decoder_hidden_size is None:
        note = "needed: the built-in classes refuse this decode head"
    else:
        note = "faster; without it the built-in classes load this model as well"
    text = fenced(f"import hf_segformer  # {note}\n{call}", "python", limit=10_000)  # whole, or it would not run
    if with_code:
        text += (
            "\n\nThe repository also holds the code of these classes (Apache-2.0): without `hf_segformer` installed, "
            "pass `trust_remote_code=True` instead of importing it. That needs `transformers` 5.17 or newer."
        )
    return f"{_MARKS[0]}\n{text}\n{_MARKS[1]}"


def replace_example(card: str, model: str, config: SegformerConfig, with_code: bool) -> str:
    """A card of `model_card` with the example for another place of the model.

    Args:
        card: Text of the card; without the marks that `model_card` sets around its example it stays as it is.
        model: Folder or repository id of the model.
        config: Configuration of the model.
        with_code: Whether the repository holds the code of the classes.

    Returns:
        Text of the card.
    """
    # Whole lines and the first only: names in titles and tables may look like the marks.
    pattern = re.compile(".*?".join(f"^{re.escape(mark)}\\s*?$" for mark in _MARKS), re.DOTALL | re.MULTILINE)
    return pattern.sub(lambda _: _use_section(model, config, with_code), card, count=1)
