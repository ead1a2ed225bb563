"""Files of other tools: what a run holds in their layouts, and their files as runs and vectors of ours."""
