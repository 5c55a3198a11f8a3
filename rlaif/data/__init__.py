"""Rows from files, folders and the hub: prompts, pairs, judged rows, and the order in which they are drawn."""
