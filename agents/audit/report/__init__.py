"""The report of a run: report.json, a report.html that needs no network, and a short table."""

from agents.audit.report.build import build_report
from agents.audit.report.model import Report
from agents.audit.report.table import summary_table
from agents.audit.report.write import write_report

__all__ = ["Report", "build_report", "summary_table", "write_report"]
