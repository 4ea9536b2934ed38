# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Push a model folder to the Hub, as one commit.

DIR holds config.json, model.safetensors and preprocessor_config.json, as `convert`, `train` and `save_pretrained`
write them. The folder is checked before anything is sent, and not changed. The licence is that of the weights: weights
fine-tuned from others inherit theirs. Log in first with `hf auth login`, or set HF_TOKEN.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..hub.push import folder_license, push_folder
from .parser import Parser


def main(arguments: Sequence[str], prog: str | None = None) -> None:
    """Push, and say where it is.

    Args:
        arguments: Words of the command line.
        prog: How the command is called, for its help.
    """
    parser = Parser([], prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="Model folder.")
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name, or name for your own; created if missing.")
    parser.add_argument("--private", action="store_true", help="Create a private repository.")
    parser.add_argument("--revision", help="Branch; created if missing.")
    parser.add_argument("--create_pr", action="store_true", help="Open a pull request instead of changing the branch.")
    parser.add_argument("--with_code", action="store_true", help="Push the classes too, for trust_remote_code=True.")
    parser.add_argument("--license", help="Licence of the weights, if README.md does not state it.")
    parser.add_argument("--license_name", help="Name of the licence, with --license other.")
    parser.add_argument("--license_link", help="Address of the licence, with --license other.")
    parser.add_argument("--dataset", help="Data set of metrics.json, if the folder has no README.md.")
    parser.add_argument("--image", help="Picture to segment for the model card, if the folder has no README.md.")
    options = vars(*parser.parse(arguments))
    if options["license"] is None and sys.stdin.isatty() and folder_license(options["folder"]) is None:
        options["license"] = (
            input("Licence of the weights (apache-2.0, mit, cc-by-nc-4.0, other, ...): ").strip() or None
        )
    commit = push_folder(options.pop("folder"), options.pop("repo_id"), **options)
    print(commit.pr_url or commit.commit_url)
