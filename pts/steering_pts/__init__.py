"""Pivotal token search: find the tokens that decide whether a language model succeeds."""
