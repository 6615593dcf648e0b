"""Nodes that convey layers of stated depth, for tests of a deployment."""
