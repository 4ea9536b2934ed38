# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The model and the image processor that a run starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..configuration_segformer import SegformerConfig
from ..evaluation.protocols import Protocol
from ..hub_errors import load_config, load_model, load_processor
from ..image_processing_segformer import SegformerImageProcessor
from ..modeling_segformer import SegformerForSemanticSegmentation
from .initialization import initialize_as_published, load_encoder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..data import SegmentationData
    from ..recipes import Recipe
    from .arguments import TrainArguments


def build_model(
    args: TrainArguments, recipe: Recipe, data: SegmentationData, accelerator: Accelerator
) -> tuple[SegformerForSemanticSegmentation, SegformerImageProcessor]:
    """Model and image processor for the data set's classes: new ones, or those that `args.model` names.

    Args:
        args: The flags.
        recipe: What they come to.
        data: Gives the classes.
        accelerator: Prints what was loaded.

    Raises:
        ValueError: As `load_model` and `load_encoder`.
    """
    fields = _class_fields(args, data)
    if args.model is None:
        model = _new_model(args, recipe, fields, accelerator)
        image_processor = SegformerImageProcessor()
    else:
        if args.drop_path_rate is not None:
            fields["drop_path_rate"] = args.drop_path_rate
        options = {"num_labels": len(fields["id2label"]), "ignore_mismatched_sizes": True, "dtype": torch.float32}
        loaded: Any = load_model(args.model, **options, **fields)
        model = loaded
        # Some encoders come without one.
        image_processor = load_processor(args.model, default=SegformerImageProcessor())
    _set_up_processor(image_processor, args, recipe, data)
    return model, image_processor


def _class_fields(args: TrainArguments, data: SegmentationData) -> dict[str, Any]:
    id2label = dict(enumerate(data.class_names))
    if args.model is not None and data.num_classes == 2 and load_config(args.model).num_labels == 1:
        id2label = {0: data.class_names[1]}  # its one logit tells the second class from the first
    return {
        "id2label": id2label,
        "label2id": {name: index for index, name in id2label.items()},
        "semantic_loss_ignore_index": data.ignore_index,
        "palette": [list(color) for color in data.palette],
    }


def _new_model(
    args: TrainArguments, recipe: Recipe, fields: dict[str, Any], accelerator: Accelerator
) -> SegformerForSemanticSegmentation:
    config = SegformerConfig.for_variant(recipe.variant, **fields | recipe.config_fields())
    model = SegformerForSemanticSegmentation(config)
    initialize_as_published(model, recipe.initialization)
    if args.encoder is not None and not args.resume:
        accelerator.print(load_encoder(model, args.encoder))
    elif args.recipe and args.encoder is None:
        accelerator.print("note: the published run started from an ImageNet encoder, which --encoder takes")
    return model


def _set_up_processor(
    image_processor: SegformerImageProcessor, args: TrainArguments, recipe: Recipe, data: SegmentationData
) -> None:
    """Make the image processor do what the run's protocol does."""
    image_processor.size = {"shortest_edge": recipe.image_size, "longest_edge": recipe.long_side}
    image_processor.do_reduce_labels = data.annotation_format.reduce_zero_label
    protocol = Protocol.named(recipe.protocol)
    if protocol.resize == "keep-ratio":
        image_processor.keep_ratio, image_processor.antialias = True, False
        image_processor.size_divisor = protocol.size_divisor
