# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What `fuzz.py` tries: one function for each area, which draws a call of a public entry point.

Most arguments are good, so that each odd one is seen on its own.
"""

import contextlib
import functools
import io
import json
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.data.classes import read_class_table
from hf_segformer.data.labels import AnnotationFormat
from hf_segformer.data.segmentation_data import read_sample
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.metrics import ConfusionMatrix
from hf_segformer.evaluation.protocols import PROTOCOLS, Protocol

LOOP: list = []
LOOP.append(LOOP)
ODD = [None, True, False, -1, 0, 1, 2, 3, 7, 2.5, -0.5, float("nan"), float("inf"), 1e300, 2**31, 2**63, 10**30]
ODD += ["", "abc", "3", "é\ud800", b"abc", [], (), {}, set(), [1, 2], (3, "a"), [None], {1: 2}, {"height": 5}, LOOP]
ODD += [np.int64(3), np.float32(2.5), np.array(3), np.array([1, 2]), np.zeros((2, 2)), np.array("a"), np.array(None)]
ODD += [torch.tensor(3), torch.zeros(2), torch.empty(2, device="meta"), 1 + 2j, range(3), float, object, Ellipsis]
LABELS = ["a", "b", "road", "", "a b", "é", None, 3, "a", "x" * 300]


class Case(NamedTuple):
    """A call: plain arguments, odd ones instead or beside them, what is wrong with a result, names of arguments."""

    entry: Any
    plain: dict[str, Any]
    odd: dict[str, Any]
    fault: Any = lambda result, arguments: ""
    names: dict[str, tuple[str, ...]] = {}


def choose(rng, valid, odd_share=0.3):
    """One of the valid values, or anything."""
    return rng.choice(ODD) if rng.random() < odd_share else rng.choice(valid)


def some(rng, choices, share=0.2, odd_share=0.3):
    """A few options with a valid or an odd value each."""
    return {name: choose(rng, valid, odd_share) for name, valid in choices.items() if rng.random() < share}


def plain_pixels(rng, shape, high=256):
    return np.array(np.random.default_rng(rng.getrandbits(32)).integers(0, high, shape), np.uint8)


def pixels(rng, shape, dtype="uint8", high=256):
    """Array of random values, in an odd memory layout now and then."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    array = np.array(numbers.integers(0, high, shape), dtype)
    if array.dtype.kind == "f":
        array = np.array(array / rng.choice([1, 255, high]), dtype)
        if array.size and rng.random() < 0.2:
            array.flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -np.inf, 6e4])
    if rng.random() < 0.1:
        array = rng.choice(
            [np.asfortranarray, lambda a: a[::-1] if a.ndim else a, lambda a: np.ma.masked_array(a, a == 0)]
        )(array)
    array.flags.writeable = rng.random() < 0.9
    return array


def side(rng):
    return rng.choice([0, 1, 2, 3, 4, 5, 9, 30, 31] if rng.random() < 0.3 else [12, 16, 17, 23])


NUMPY = ["uint8"] * 8 + ["bool", "int8", "int16", "uint16", "int64", "uint64", "float16", "float32", "float64", ">f4"]
NUMPY += [">i2", "complex64", "object", "U3", "longdouble"]
TORCH = [torch.uint8, torch.bool, torch.int16, torch.uint16, torch.uint32, torch.uint64, torch.int64, torch.float32]
TORCH += [torch.float16, torch.bfloat16, torch.float64, torch.complex64]
MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F", "RGBX", "La", "LAB"]


def picture(rng, bands=3):
    """PIL image, array or tensor of 2 (`bands=0`) or 3 dimensions, now and then of others."""
    height, width, kind = side(rng), side(rng), rng.random()
    if kind < 0.25:
        mode = rng.choice(["L", "P", "1", "I", "I;16", "RGB"] if bands == 0 else MODES)
        image = Image.new(mode, (width, height), rng.choice([0, 1]))
        if rng.random() < 0.15:
            image.getexif()[0x0112] = rng.choice([0, 1, 3, 6, 8, 9])
        return image
    if kind < 0.3:
        shape = tuple(rng.choice([0, 1, 2, 3, 5]) for _ in range(rng.choice([0, 1, 2, 3, 4, 5])))
    elif bands == 0 or kind < 0.4:
        shape = (height, width)
    else:
        channels = rng.choice([bands] * 8 + [0, 1, 2, 3, 4, 5, 6])
        shape = (height, width, channels) if rng.random() < 0.7 else (channels, height, width)
    array = pixels(rng, shape, rng.choice(NUMPY), rng.choice([2, 6, 256]))
    if rng.random() < 0.7:
        return array
    tensor = torch.from_numpy(np.array(pixels(rng, shape, "float32"))).to(rng.choice(TORCH))
    return rng.choice([tensor] * 6 + [tensor.to("meta")] + [torch.zeros(shape).to_sparse()])


def pictures(rng, bands=3):
    """One or several, or something else."""
    if rng.random() < 0.1:
        return rng.choice(ODD)
    several = [picture(rng, bands) for _ in range(rng.choice([1, 2, 3]))]
    return rng.choice([several[0], several[0], several, tuple(several), [several], [*several, rng.choice(ODD)]])


BOOLS = [True, False]
SIZES = [
    16,
    20,
    {"height": 12, "width": 20},
    {"shortest_edge": 12},
    {"shortest_edge": 12, "longest_edge": 30},
    (9, 12),
]
SIZES += [
    {"max_height": 12, "max_width": 9},
    {"height": 0, "width": 3},
    {"height": 2**31, "width": 2**31},
    {"width": 2},
]
SIZES += [{"height": 2.0, "width": 4}, {"shortest_edge": 12, "longest_edge": 5}, [10, 12], {"height": 1, "width": 1}]
STATS = [0.5, (0.5, 0.4, 0.3), [0.5] * 3, [1, 2, 3], [0.5] * 4, [0.2], (1e-30,) * 3, [0, 1, 1], np.array([0.5] * 3)]
OPTIONS = dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_pad", "do_reduce_labels"), BOOLS)
OPTIONS |= {name: [*BOOLS, None] for name in ("do_convert_rgb", "keep_ratio", "antialias", "allow_missing")}
OPTIONS |= {"size": SIZES, "pad_size": [*SIZES, {"height": 40, "width": 40}], "size_divisor": [1, 2, 8, 32, None]}
OPTIONS |= {
    "image_mean": STATS,
    "image_std": STATS,
    "rescale_factor": [1 / 255, 1, 0.0, 1e-300, 1e300],
    "reduce_labels": BOOLS,
}
OPTIONS |= {"resample": [0, 1, 2, 3, 4, 5, "bilinear", "nearest", 9], "device": ["cpu", "cuda:77", None, "meta"]}
OPTIONS |= {
    "input_data_format": ["channels_first", "channels_last", None, "none"],
    "return_tensors": ["pt", "np", None],
}
OPTIONS |= {"data_format": ["channels_first", "channels_last", None], "crop_size": SIZES, "do_center_crop": BOOLS}


def processor(rng, folder):
    """Pictures and label maps with any options, given to a call, to the constructor or to `from_dict`."""

    def entry(images, segmentation_maps=None, **options):
        if way == "call":
            return SegformerImageProcessor(size=16)(images, segmentation_maps, **options)
        made = SegformerImageProcessor(**options) if way == "init" else SegformerImageProcessor.from_dict(options)
        json.dumps(made.to_json_string())
        return made(images, segmentation_maps)

    def fault(result, arguments):
        for name, dimensions in {"pixel_values": 4, "labels": 3}.items():
            values = result.get(name)
            kind = {"pt": torch.Tensor, "np": np.ndarray}.get(arguments.get("return_tensors"), list)
            is_raw = not {"do_rescale", "do_normalize"}.isdisjoint(arguments)  # bytes may stay bytes
            if values is None or way != "call" or (is_raw and dimensions == 4):
                continue
            if not isinstance(values, kind):
                return f"{name} is a {type(values).__name__}"
            first = torch.as_tensor(np.asarray(values[0])) if kind is not torch.Tensor else values[0]
            if first.ndim != dimensions - 1 or first.dtype != (torch.float32 if dimensions == 4 else torch.int64):
                return f"{name} has the form {first.dtype} with {first.ndim} axes"
            if (
                dimensions == 4
                and not first.isfinite().all()
                and is_plain(arguments["images"], "image_std", arguments)
            ):
                return f"{name} is not finite"
        return ""

    way = rng.choice(["call", "call", "init", "file"])
    odd = {"images": pictures(rng)} if rng.random() < 0.5 else {}
    if rng.random() < 0.4:
        odd["segmentation_maps"] = pictures(rng, 0)
    names = {
        "reduce_labels": ("do_reduce_labels",),
        "segmentation_maps": ("images",),
        "input_data_format": ("images",),
    }
    return Case(entry, {"images": plain_pixels(rng, (12, 17, 3))}, odd | some(rng, OPTIONS, 0.1, 0.2), fault, names)


def is_plain(image, option, arguments):
    """Whether nothing in the arguments explains values that are not finite."""
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and option not in arguments


def post_processing(rng, folder):
    """Logits and sizes for label maps."""

    def entry(logits, target_sizes=None, do_pad=False, size=16, bare=False, **options):
        outputs = logits if bare else SimpleNamespace(logits=logits)
        made = SegformerImageProcessor(size=size, do_pad=do_pad)
        return made.post_process_semantic_segmentation(outputs, target_sizes, **options)

    def fault(result, arguments):
        maps = [entry if isinstance(entry, torch.Tensor) else entry["segmentation"] for entry in result]
        wrong = [m for m in maps if m.dtype != torch.int64 or m.ndim != 2 or (m.numel() and (m.min() < 0))]
        sizes, count = arguments.get("target_sizes"), len(arguments["logits"])
        if count == 0:
            return "" if result == [] else "label maps without logits"
        if sizes is not None and [list(m.shape) for m in maps] != [[int(s) for s in size] for size in sizes]:
            return "label maps have other sizes than asked for"
        return "label maps are of another form" if wrong or len(maps) != count else ""

    count = rng.choice([1, 2, 3])
    plain = {"logits": torch.from_numpy(plain_pixels(rng, (count, 3, 4, 5))) / 255}
    shape = [rng.choice([0, 1, 2, 3, 5]) for _ in range(rng.choice([4, 4, 4, 4, 1, 3, 5]))]
    logits = torch.from_numpy(np.array(pixels(rng, shape, "float32"))).to(rng.choice(TORCH + [torch.float32] * 9))
    odd = {"logits": choose(rng, [logits], 0.1)} if rng.random() < 0.4 else {}
    size = [choose(rng, [3, 7, 16, 1, 0, 4.0, torch.tensor(3)], 0.1) for _ in range(rng.choice([2, 2, 2, 1, 3]))]
    sizes = [size] * rng.choice([count, count, count, 1, 2])
    array = [np.array([[4, 5]] * count), torch.tensor([[4, 5]] * count), np.zeros((count, 2))]
    choices = {"target_sizes": [sizes, size, tuple(map(tuple, sizes)), *array], "do_pad": BOOLS, "size": SIZES}
    choices |= {"return_segmentation_scores": BOOLS, "return_confidence": BOOLS, "inputs": [None, {}, "abc"]}
    odd |= some(rng, choices, 0.4, 0.15) | some(rng, {"bare": [True]}, 0.05, 0)
    return Case(entry, plain, odd, fault, dict.fromkeys(("logits", "bare"), ("outputs", "target_sizes")))


LISTS = ("depths", "sr_ratios", "hidden_sizes", "patch_sizes", "strides", "num_attention_heads", "mlp_ratios")
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob", "drop_path_rate")
WHOLE = ("num_channels", "num_encoder_blocks", "decoder_hidden_size", "conv_decoder_hidden_size", "num_hidden_layers")
FIELDS = {name: [[2, 2, 2, 2], (8, 4, 2, 1), [1] * 4, [0, 1, 1, 1], [1], [], [2.5] * 4, ["a"] * 4] for name in LISTS}
FIELDS |= {name: [0, 0.0, 0.5, 0.99, 1, -0.1] for name in RATES} | {name: [0, 1, 3, 4, 256, None] for name in WHOLE}
FIELDS |= {name: [1e-5, 1e-6, 0.0, -1.0, 1] for name in ("layer_norm_eps", "block_norm_eps", "embed_norm_eps")}
FIELDS |= {"hidden_act": ["gelu", "relu", "GELU"], "classifier_dropout_mode": ["element", "channel", "row"]}
FIELDS |= {"initializer_range": [0.02, 0.0], "semantic_loss_ignore_index": [255, -100], "reshape_last_stage": BOOLS}
FIELDS |= {"palette": [None, [[1, 2, 3]] * 2, [[1, 2]], [(0, 0, 300)]], "out_indices": [[0], [-1], [1, 2, 3], [9], []]}
FIELDS |= {
    "out_features": [["stage1"], ["stage4", "stage1"], ["stem"], ["stage9"], "stage1"],
    "num_labels": [1, 2, 5, 0],
}
FIELDS |= {"id2label": [{0: "a"}, {"0": "a"}, {1: "a"}], "label2id": [{"a": 0}], "torch_dtype": ["float32", "f"]}
SHORT = dict.fromkeys(("decoder_hidden_size", "conv_decoder_hidden_size"), ("decode head", "exactly one"))
SHORT |= {"num_hidden_layers": ("num_encoder_blocks",), "torch_dtype": ("dtype",)}


def configured(way, folder, fields):
    """A configuration, made in one of the ways there are."""
    if way == "init":
        return SegformerConfig(**fields)
    if way == "from_dict":
        return SegformerConfig.from_dict({"model_type": "segformer", **fields})
    if way == "keywords":
        return SegformerConfig.from_dict({"model_type": "segformer"}, **fields)
    config = SegformerConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    config.validate()
    return config


def config(rng, folder):
    """Fields of a configuration; what is made of them is written and read back."""

    def entry(**fields):
        return configured(way, folder, fields)

    def fault(result, arguments):
        result.save_pretrained(folder)
        return "" if SegformerConfig.from_pretrained(folder) == result else "another configuration is read back"

    way = rng.choice(["init", "from_dict", "keywords", "assignment"])
    return Case(entry, {}, some(rng, FIELDS, 0.1), fault, SHORT)


def label_maps(rng, folder):
    """Tables of names, in all the forms that files and calls have."""

    def entry(**fields):
        return configured(way, folder, fields)

    def fault(result, arguments):
        if result.id2label is None:
            return ""
        count = len(result.id2label)
        if result.num_labels != count or list(dict(result.id2label or {})) != list(range(count)):
            return "num_labels and id2label differ"
        result.save_pretrained(folder)
        return "" if SegformerConfig.from_pretrained(folder) == result else "another configuration is read back"

    keys = [0, 1, 2, 3, "0", "1", " 2", 255, -1, 1.0, 1.5, True, None, "a", np.int64(2), (), b"0", 10**30, "1_0"]
    tables = [{rng.choice(keys): rng.choice(LABELS) for _ in range(rng.randrange(5))} for _ in range(3)]
    tables += [{index: f"c{index}" for index in range(rng.randrange(4))}, dict(enumerate(["a", "b"]))]
    inverse = [{rng.choice(LABELS): rng.choice(keys) for _ in range(rng.randrange(4))}, {"a": 0, "b": 1}, ["a"]]
    way = rng.choice(["init", "from_dict", "keywords", "assignment"])
    choices = {"id2label": tables, "label2id": inverse, "num_labels": [0, 1, 2, 3, -1, 5]}
    return Case(entry, {}, some(rng, choices, 0.7, 0.15), fault)


def metric(rng, folder):
    """Class ids for a `ConfusionMatrix`, and for `MeanIoU`."""

    def entry(predictions, labels, num_labels=5, ignore_index=255, device="cpu", class_names=None, **options):
        if mean_iou:
            made = mean_iou(num_labels, ignore_index, device=device, **{k: options[k] for k in built & options.keys()})
            given = {name: value for name, value in options.items() if name not in built}
            return made.compute(predictions=predictions, references=labels, **given)
        matrix = ConfusionMatrix(num_labels, ignore_index, device)
        matrix.update(predictions, labels)
        if class_names is not None:
            matrix.table(class_names)
        return matrix.compute()

    def fault(result, arguments):
        json.dumps(result)
        numbers = [result["mean_iou"], *result["per_category_iou"]]
        good = all(np.isnan(x) or 0 <= x <= 1 or "nan_to_num" in arguments for x in numbers)
        return "" if good else f"IoU outside [0, 1]: {numbers}"

    built, mean_iou = {"reduce_labels", "nan_to_num"}, None
    if rng.random() < 0.5 and "evaluate" in sys.modules:
        from hf_segformer.evaluation.metrics import MeanIoU as mean_iou
    shape = rng.choice([(4, 5), (2, 4, 5), (3,), (0, 4)])
    plain = {name: plain_pixels(rng, shape, 5) for name in ("predictions", "labels")}
    values = {
        name: [pixels(rng, shape, rng.choice(NUMPY), rng.choice([5, 5, 5, 7])) for _ in range(3)] for name in plain
    }
    for name, given in values.items():
        tensor = torch.from_numpy(np.array(plain[name])).to(rng.choice(TORCH))
        given += [tensor, tensor.tolist(), [plain[name]], pixels(rng, (4, 4), "uint8", 5), tensor[None], [[1, 2], [3]]]
    choices = {"num_labels": [5, 6, 1, 2], "ignore_index": [255, None, 0, -100], "device": ["cpu", "cuda:77", "meta"]}
    own = {"class_names": [list("abcde"), "abcde", ["a"], [1, 2, 3, 4, 5]]}
    if mean_iou:
        own = {"reduce_labels": BOOLS, "nan_to_num": [None, 0, -1.0, float("nan")], "label_map": [{0: 1}, None]}
    odd = some(rng, values, 0.5, 0.2) | some(rng, choices | own, 0.2)
    # An id may be wrong because of what the classes are.
    joint = dict.fromkeys(("num_labels", "ignore_index", "reduce_labels"), ("predictions", "labels", "references"))
    return Case(entry, plain, odd, fault, joint | {"labels": ("references",)})


@functools.cache
def model(num_labels):
    widths = {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4], "depths": [1] * 4}
    torch.manual_seed(0)
    config = SegformerConfig(**widths, decoder_hidden_size=8, num_labels=num_labels)
    return SegformerForSemanticSegmentation(config).eval()


def segmenting(rng, folder):
    """`segment` with any picture, protocol and processor."""
    protocol_fields = {"resize": ["stretch", "none", "keep-ratio", "processor"], "crop_size": [16, (16, 20), (0, 3)]}
    protocol_fields |= {"scale": [(40, 30), (64, 32), 32], "stride": [8, (8, 8), (30, 30)], "size_divisor": [1, 32, 0]}
    protocol_fields |= {"tta": ["none", "nvlabs", "none"], "one_step": BOOLS, "nvlabs_ratios": [(1.0,), (0.5, 2), ()]}

    def entry(image, num_labels=3, size=32, name="processor", image_processor=None, **options):
        fields = {key: options.pop(key) for key in protocol_fields if key in options}
        protocol = options.pop("protocol", None)
        protocol = Protocol.named(name, **fields) if protocol is None else protocol
        made = SegformerImageProcessor(size=size) if image_processor is None else image_processor
        return segment(model(num_labels), made, image, protocol, **options)

    def fault(result, arguments):
        labels = result[0] if isinstance(result, tuple) else result
        count = max(arguments.get("num_labels", 3), 2)
        good = labels.ndim == 2 and labels.dtype == np.uint8 and labels.max() < count
        image = arguments["image"]
        good &= not is_plain(image, "image", {}) or image.ndim > 2 or labels.shape == image.shape
        return "" if good else f"label map {labels.dtype} {labels.shape} up to {labels.max()}"

    plain = {"image": plain_pixels(rng, (side(rng) + 1, side(rng) + 1, 3))}
    odd = {"image": pictures(rng)} if rng.random() < 0.5 else {}
    names = [name for name in PROTOCOLS if name in ("processor", "slide")] + ["abc"]
    choices = {"name": names, "overlap": ["mean", "gaussian", "max"], "window_batch_size": [1, 4, 0, None]}
    choices |= {"return_confidence": BOOLS, "image_processor": [None], "protocol": [None]}
    odd |= some(rng, choices | protocol_fields, 0.1) | some(rng, {"num_labels": [1, 2]}, 0.3, 0)
    joint = {name: tuple(protocol_fields) for name in protocol_fields}  # their rules are about several of them
    return Case(entry, plain, odd, fault, joint | {"name": ("protocol",), "image": ("images",)})


def class_files(rng, folder):
    """Texts of class files: valid, odd, and damaged."""
    suffix = rng.choice(["json", "json", "txt"])

    def entry(content, path=folder / f"class file.{suffix}"):
        (folder / f"class file.{suffix}").write_bytes(content)
        return read_class_table(path)

    def fault(result, arguments):
        good = (
            result.names and len(result.names) == len(result.palette) and all(isinstance(n, str) for n in result.names)
        )
        return "" if good else f"names {result.names}, palette {result.palette}"

    entries = [None, 1, "a", "b", [], {}, -1, 1e999, [0, 0, 0], [[1, 2, 3]] * 2, ["a", "b"], {"0": "a"}, 10**400, True]
    fields = {"names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore_index": 255, "ignore_color": [0, 0, 0]}
    fields = {name: value for name, value in fields.items() if rng.random() < 0.7}
    fields |= {name: rng.choice(entries) for name in (*fields, "id2label") if rng.random() < 0.15}
    table = {rng.choice(["0", "1", "x", "-1", "01"]): rng.choice(entries) for _ in range(3)}
    content = rng.choice([fields, fields, table, rng.choice(entries), [rng.choice(entries) for _ in range(3)]])
    text = (
        json.dumps(content)
        if suffix == "json"
        else "\n".join(map(str, content if content else []))
        if isinstance(content, list)
        else str(content)
    )
    text = rng.choice(
        [text] * 8 + ["[" * 10**5, '{"a": 1, "a": 2}', "1" * 5000, "[" + "9" * 5000 + "]", "\n\n", "\x00"]
    )
    odd = {"content": damaged(rng, text.encode(rng.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig", "utf-32"])))}
    odd |= some(rng, {"path": [folder, folder / "absent.json", "absent.txt"]}, 0.05, 0)
    name = ("class file",)
    return Case(entry, {"content": b'["a"]'}, odd, fault, {"content": name, "path": (*name, folder.name, "absent")})


def damaged(rng, content):
    """Bytes with an error now and then."""
    if rng.random() < 0.6 or not content:
        return content
    place, more = rng.randrange(len(content)), bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    return rng.choice(
        [content[:place], content[:place] + more + content[place + len(more) :], more, b"", content + more]
    )


def annotation_files(rng, folder):
    """Annotation pictures of any kind and state, with any way to read them."""

    def entry(content, num_classes=3, mask_format="ids", **options):
        (folder / "mask file").write_bytes(content)
        fields = AnnotationFormat(num_classes, mask_format, **options)
        return read_sample({"image": Image.new("RGB", (6, 5)), "annotation": str(folder / "mask file")}, fields)

    def fault(result, arguments):
        label, ignored = result[1], arguments.get("ignore_index", 255)
        good = label.shape == (5, 6) and label.dtype in (np.uint8, np.int32)
        if "id_map" in arguments:  # which says itself what the ids are
            return ""
        good = good and ((label == ignored) | ((label >= 0) & (label < arguments.get("num_classes", 3)))).all()
        return "" if good else f"label ids {label.dtype} {label.shape} {np.unique(label)[:9]}"

    def stored(mode, name, high=2):
        file = io.BytesIO()
        with contextlib.suppress(OSError, ValueError, KeyError):  # not every format stores every mode
            image = Image.fromarray(plain_pixels(rng, (5, 6), high))
            image = image.convert(mode)
            image.save(file, name, **rng.choice([{}, {"exif": Image.Exif()}]))
        return file.getvalue()

    kind = rng.choice(["PNG"] * 4 + ["TIFF", "BMP", "GIF", "JPEG", "WEBP", "PPM"])
    odd = {"content": damaged(rng, stored(rng.choice(["L"] * 5 + MODES), kind, rng.choice([2, 3, 4, 256])))}
    choices = {
        "num_classes": [3, 2, 4, 300],
        "mask_format": ["ids", "binary", "rgb", "RGB"],
        "reduce_zero_label": BOOLS,
    }
    choices |= {"ignore_index": [255, 0, -1, 2**20], "palette": [((0, 0, 0), (1, 1, 1), (2, 2, 2)), ((0, 0, 0),) * 3]}
    choices |= {"ignore_color": [(9, 9, 9), None], "id_map": [((0, 0), (1, 2)), (), ((0, 0), (7, 1), (255, 255))]}
    plain = {"content": stored("L", "PNG")}
    joint = dict.fromkeys(choices, ("mask_format", "mask file", *choices))
    return Case(entry, plain, odd | some(rng, choices, 0.2, 0.0), fault, joint | {"content": ("mask file",)})


AREAS = {"processor": processor, "post-processing": post_processing, "config": config, "label-maps": label_maps}
AREAS |= {"metric": metric, "segment": segmenting, "class-files": class_files, "annotation-files": annotation_files}
