"""The page about a run: one HTML file that needs nothing else, no network, no script, no font."""
