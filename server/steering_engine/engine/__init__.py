"""Engines: the `Engine` protocol and its implementation over transformers' continuous batching."""
