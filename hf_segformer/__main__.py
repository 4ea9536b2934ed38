# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m hf_segformer`, and so `accelerate launch -m hf_segformer`: the command line."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
