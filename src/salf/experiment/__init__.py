"""Experiments: everything that determines a run, as one validated value read from and written to TOML.

Methods, rules and device models are looked up by name; `register` adds to them.
"""

from salf.experiment.experiment import ClientSettings as ClientSettings
from salf.experiment.experiment import DataSettings as DataSettings
from salf.experiment.experiment import EvaluateSettings as EvaluateSettings
from salf.experiment.experiment import Expected as Expected
from salf.experiment.experiment import Experiment as Experiment
from salf.experiment.files import preset_names as preset_names
from salf.experiment.origins import reasons_in as reasons_in
from salf.experiment.registration import register as register
from salf.experiment.wording import did_you_mean as did_you_mean
from salf.experiment.wording import shown as shown
