"""Ray actors: the only part of the project that touches ray, vllm and deepspeed."""
