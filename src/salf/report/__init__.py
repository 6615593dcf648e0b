"""Reports on runs: one HTML page that works offline, without scripts, in light and dark, and picture files.

The page's figures are SVG elements that the page's style sheet colours. Picture files are drawn by matplotlib.
"""

from salf.report.numbers import Figures as Figures, figures_of as figures_of
from salf.report.page import render_report as render_report
from salf.report.plots import (
    plot_accuracy as plot_accuracy,
    plot_deadlines as plot_deadlines,
    plot_growth as plot_growth,
    save_figure as save_figure,
)
from salf.report.reported import (
    ReportedRun as ReportedRun,
    explanation_of as explanation_of,
    flatten as flatten,
    group_runs as group_runs,
)
