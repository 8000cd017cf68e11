"""A folder of runs as one page that one can send to a colleague, and as tables for a paper."""

from wanlab.reports._report import Report, report

__all__ = ["Report", "report"]
