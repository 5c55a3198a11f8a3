"""How good a judge is: accuracy, calibration, bias, harmless edits, and the report of it."""
