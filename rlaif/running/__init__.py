"""What surrounds a run: command line, folder, preflight, report, evaluations, when to stop."""
