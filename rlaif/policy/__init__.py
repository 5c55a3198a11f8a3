"""The policy update as pure functions: advantages, losses, KL, controllers, which groups are trained on."""
