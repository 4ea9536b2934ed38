# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""`transformers.Trainer` trains the model as it should."""

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.models.segformer import modeling_segformer as stock

from hf_segformer import SegformerForSemanticSegmentation


class Pictures(torch.utils.data.Dataset):
    """Eight fixed pictures with labels everywhere."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values": torch.randn(3, 32, 32, generator=generator),
            "labels": torch.randint(0, 5, (32, 32), generator=generator),
        }


def trained(model, folder, batch_size, accumulation):
    # Batch statistics would differ between batches of 4 and of 1 whatever the loss does.
    norm = model.decode_head.batch_norm.eval()
    norm.train = lambda mode=True: norm
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
        learning_rate=0.05,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=1,
        disable_tqdm=True,
    )
    Trainer(model=model, args=args, train_dataset=Pictures()).train()
    return model.decode_head.classifier.weight.detach().clone()


@pytest.mark.parametrize("builtin", [False, True], ids=["ours", "transformers"])
def test_gradient_accumulation_equals_one_batch(builtin, tiny_config, randomize, tmp_path):
    config = tiny_config(classifier_dropout_prob=0.0, drop_path_rate=0.0)
    randomize(SegformerForSemanticSegmentation(config)).save_pretrained(tmp_path / "start")
    cls = stock.SegformerForSemanticSegmentation if builtin else SegformerForSemanticSegmentation
    one, four = (
        trained(cls.from_pretrained(tmp_path / "start"), tmp_path / "run", batch_size, accumulation)
        for batch_size, accumulation in ((4, 1), (1, 4))
    )
    equal = torch.allclose(one, four, rtol=1e-4, atol=1e-5)
    # The built-in class is the control: it shows that this test can fail.
    assert equal is not builtin
