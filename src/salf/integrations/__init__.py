"""salf inside other training libraries: one module for each, which imports that library.

`transformers` and `lightning` give their trainers a deadline, `accelerate` gives one to a loop that it prepares, and
`peft` lets only adapters travel. Each needs an extra of its own name; `pip install 'salf[integrations]'` installs all.
"""
