"""TODO."""

from salf.experiment.experiment import ClientSettings as ClientSettings
from salf.experiment.experiment import DataSettings as DataSettings
from salf.experiment.experiment import EvaluateSettings as EvaluateSettings
from salf.experiment.experiment import Experiment as Experiment
from salf.experiment.overrides import did_you_mean as did_you_mean
from salf.experiment.overrides import preset_names as preset_names
