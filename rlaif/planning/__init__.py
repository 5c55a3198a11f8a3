"""Before anything starts: what a run takes of which node, whether it fits, and about how long a step is."""
