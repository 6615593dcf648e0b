"""How methods, rules and device models are found by name: built-in, registered or installed. No torch."""

from salf.registry.registry import Choice as Choice
from salf.registry.registry import ExtensionWarning as ExtensionWarning
from salf.registry.registry import Registry as Registry
