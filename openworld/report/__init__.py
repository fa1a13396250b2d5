"""What people look at after a run: drawings of detections, figures, and one self-contained HTML page."""

from openworld.report.build import build_report
from openworld.report.draw import contact_sheet, draw_detections, draw_ground_truth
from openworld.report.pictures import sample_sheet

__all__ = ["build_report", "contact_sheet", "draw_detections", "draw_ground_truth", "sample_sheet"]
