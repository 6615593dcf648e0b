"""A language model that learns from speakers on unequal devices."""
