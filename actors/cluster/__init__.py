"""Ray itself: connection, placement, the plan against what is there."""
