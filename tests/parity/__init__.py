"""Comparisons with other people's programs, run by hand where these are installed; figures are in the documentation."""
