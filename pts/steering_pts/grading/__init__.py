"""Judging answers that are already there: reading them, and comparing an oracle's verdicts with labels."""
