"""The search for pivotal tokens: what to roll out next, given all outcomes so far, and what they confirm.

It asks for rollouts by key and is told their outcomes, so the same code runs against an engine, a ledger of earlier
outcomes, or a simulation. It draws no random number itself.
"""

from steering_pts.search.search import Search
from steering_pts.search.trace import Outcome, Step, Trace, candidates

__all__ = ["Outcome", "Search", "Step", "Trace", "candidates"]
