"""Everything about a vector file: its numbers, its triggers, and what its directions mean in tokens."""
