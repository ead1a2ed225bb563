"""Benchmarks of the engine: batches side by side that differ in one thing each, as ratios of their throughput."""
