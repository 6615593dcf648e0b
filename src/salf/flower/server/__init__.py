"""TODO."""

from salf.flower.server.exchange import Exchange as Exchange
