"""The policy in vLLM: the engine, its actor, the weights that it takes."""
