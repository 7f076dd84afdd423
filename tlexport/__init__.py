"""From fine-tuned to served, with the proof and the price."""

__version__ = "0.1.0"
