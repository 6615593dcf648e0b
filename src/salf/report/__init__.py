"""One self-contained HTML page about runs: works offline and without scripts, in light and dark, on paper."""

from salf.report.numbers import Figures as Figures
from salf.report.numbers import figures_of as figures_of
from salf.report.page import render_report as render_report
from salf.report.plots import plot_accuracy as plot_accuracy
from salf.report.plots import plot_deadlines as plot_deadlines
from salf.report.plots import plot_growth as plot_growth
from salf.report.plots import save_figure as save_figure
from salf.report.reported import Group as Group
from salf.report.reported import ReportedRun as ReportedRun
from salf.report.reported import flatten as flatten
from salf.report.reported import group_runs as group_runs
