"""Generators: text-to-image programs other than a run's policy, for rows to compare runs with. One a file."""
