"""An app whose nodes send a given number of layers, for tests of a deployment."""
