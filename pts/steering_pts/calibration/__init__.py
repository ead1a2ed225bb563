"""Which method, block, strength and trigger: settings compete on validation problems, within a budget of divergence."""
