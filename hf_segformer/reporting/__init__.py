# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The report of a run or an evaluation: one HTML file that needs nothing else, and can be mailed."""

from .page import REPORT_NAME, Report, worst_pictures, write_report
from .versions import versions

__all__ = ["REPORT_NAME", "Report", "versions", "worst_pictures", "write_report"]
