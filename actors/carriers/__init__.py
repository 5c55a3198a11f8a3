"""What carries tensors from process to process: shared memory, gloo, lines of either to many engines."""
