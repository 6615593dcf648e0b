"""Runs that are kept in folders: they survive a kill at any instant and resume, alone or many at a time.

Also what is built from many runs: comparisons of methods, the tuning of learning rates, and logs for other tools.
"""

from salf.runs.atomic import make_folder as make_folder
from salf.runs.atomic import write_atomically as write_atomically
from salf.runs.checkpoint import Attachment as Attachment
from salf.runs.checkpoint import load_checkpoint as load_checkpoint
from salf.runs.checkpoint import save_checkpoint as save_checkpoint
from salf.runs.comparison import Comparison as Comparison
from salf.runs.comparison import Summary as Summary
from salf.runs.comparison import Tuning as Tuning
from salf.runs.comparison import compare as compare
from salf.runs.comparison import tune as tune
from salf.runs.folder import lock_folder as lock_folder
from salf.runs.run import Run as Run
from salf.runs.run import run_experiment as run_experiment
from salf.runs.run_files import RunFiles as RunFiles
from salf.runs.run_files import find_runs as find_runs
from salf.runs.run_files import read_experiment as read_experiment
from salf.runs.run_files import write_page as write_page
from salf.runs.tracking import RecordObserver as RecordObserver
from salf.runs.tracking import log_to_mlflow as log_to_mlflow
from salf.runs.tracking import log_to_tensorboard as log_to_tensorboard
