"""TODO."""

from salf.runs.atomic import write_atomically as write_atomically
from salf.runs.checkpoint import Attachment as Attachment
from salf.runs.checkpoint import load_attached as load_attached
from salf.runs.checkpoint import save_checkpoint as save_checkpoint
from salf.runs.comparison import Comparison as Comparison
from salf.runs.comparison import Summary as Summary
from salf.runs.comparison import compare as compare
from salf.runs.folder import RunFolder as RunFolder
from salf.runs.locks import FolderLock as FolderLock
from salf.runs.reports import find_runs as find_runs
from salf.runs.reports import write_page as write_page
from salf.runs.run import Run as Run
from salf.runs.run import run_experiment as run_experiment
from salf.runs.tuning import Tuning as Tuning
from salf.runs.tuning import tune as tune
