"""Load on a runtime: who asks, how often, and what came of it."""
