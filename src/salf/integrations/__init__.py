"""salf inside other training libraries: one module for each, which imports that library.

`peft` for adapters, `transformers` for its `Trainer`, `lightning` for its `Trainer`, and `accelerate`. Install them with
`pip install 'salf[integrations]'`, or one of them by its name.
"""
