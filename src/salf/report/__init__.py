"""Reports on runs: one HTML page that works offline, without scripts, in light and dark, and picture files.

The page's figures are SVG elements that the page's style sheet colours. Picture files are drawn by matplotlib.
"""

from salf.report.numbers import Figures as Figures
from salf.report.numbers import figures_of as figures_of
from salf.report.page import render_report as render_report
from salf.report.plots import plot_accuracy as plot_accuracy
from salf.report.plots import plot_deadlines as plot_deadlines
from salf.report.plots import plot_growth as plot_growth
from salf.report.plots import save_figure as save_figure
from salf.report.reported import ReportedRun as ReportedRun
from salf.report.reported import explanation_of as explanation_of
from salf.report.reported import flatten as flatten
from salf.report.reported import group_runs as group_runs
