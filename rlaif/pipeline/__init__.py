"""How work flows while nothing is lost: staleness, ledger, engine health, budgets."""
