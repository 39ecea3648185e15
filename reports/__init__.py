"""Reports: run directories in, statistics, tables, figures and pages out. Imports no torch."""
