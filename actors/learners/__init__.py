"""The gang that trains: its ranks under DeepSpeed, its checkpoints, the weights that it sends."""
