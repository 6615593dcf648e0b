"""How methods, rules and device models are found by name: built-in, registered or installed. No torch."""

from salf.registry.registry import Choice as Choice, ExtensionWarning as ExtensionWarning, Registry as Registry
