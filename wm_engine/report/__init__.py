"""The report of a run: one page for people, made from the run folder alone."""

from wm_engine.report.page import write_report

__all__ = ["write_report"]
