"""What becomes of actors that die or hang: pools, restarts, the watchdog, the end of a run from outside."""
