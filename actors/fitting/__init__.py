"""Training and judging on fixed rows: supervised, preference and reward training, evaluation of judges."""
