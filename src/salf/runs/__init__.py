"""Runs that are kept in folders: they survive a kill at any instant and resume, alone or many at a time.

Also what is built from many runs: comparisons of methods, the tuning of learning rates, and logs for other tools.
"""

from salf.runs.atomic import make_folder as make_folder, write_atomically as write_atomically
from salf.runs.checkpoint import (
    Attachment as Attachment,
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
)
from salf.runs.comparison import (
    Comparison as Comparison,
    Summary as Summary,
    Tuning as Tuning,
    compare as compare,
    tune as tune,
)
from salf.runs.folder import lock_folder as lock_folder
from salf.runs.run import Run as Run, run_experiment as run_experiment
from salf.runs.run_files import (
    RunFiles as RunFiles,
    find_runs as find_runs,
    read_experiment as read_experiment,
    write_page as write_page,
)
from salf.runs.tracking import (
    RecordObserver as RecordObserver,
    log_to_mlflow as log_to_mlflow,
    log_to_tensorboard as log_to_tensorboard,
)
