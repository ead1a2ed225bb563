"""Fine-tuning on pivotal pairs: what a run found, as training data for TRL."""
