# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Push a model folder to the Hub, as one commit.

    python conversion/push_to_hub.py DIR REPO_ID --license apache-2.0
    python conversion/push_to_hub.py DIR REPO_ID --license other --license_name nvidia --license_link URL --with_code

DIR holds config.json, model.safetensors and preprocessor_config.json, as written by convert.py, train.py and
`save_pretrained`. The folder is checked before anything is sent, and not changed. The licence is that of the weights:
weights fine-tuned from others inherit theirs. Log in first with `hf auth login`, or set HF_TOKEN.
"""

import sys

from hf_segformer.cli import COMMANDS

main = COMMANDS["push"].main

if __name__ == "__main__":
    sys.exit(COMMANDS["push"].run())
