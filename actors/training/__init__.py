"""Reinforcement learning: the loop, the walk of a batch, the feeder and its buffer, what is written down."""
