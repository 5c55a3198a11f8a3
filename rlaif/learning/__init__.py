"""What a learner computes: objectives, losses over micro-batches, optimizer steps, adapters, the critic."""
