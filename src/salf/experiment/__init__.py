"""Experiments: everything that determines a run, as one validated value read from and written to TOML.

Methods, rules and device models are looked up by name; `register` adds to them.
"""

from salf.experiment.experiment import (
    ClientSettings as ClientSettings,
    DataSettings as DataSettings,
    EvaluateSettings as EvaluateSettings,
    Expected as Expected,
    Experiment as Experiment,
)
from salf.experiment.files import preset_names as preset_names, reasons_in as reasons_in
from salf.experiment.registration import register as register
from salf.values import did_you_mean as did_you_mean
