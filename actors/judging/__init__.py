"""Who judges: explainers, slot models, causal judges, reward functions, each an actor."""
