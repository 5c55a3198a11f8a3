"""Models, and rows as tensors for them: padded, packed, bucketed; log-probabilities; weights as bytes."""
