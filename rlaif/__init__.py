"""The pure core: batches, prompts, rewards, advantages, losses. Never imports ray, vllm or deepspeed."""
