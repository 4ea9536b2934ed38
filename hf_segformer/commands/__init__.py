# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands of `segformer`: each module has `main(arguments, prog)`, which raises what goes wrong."""
