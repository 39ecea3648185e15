"""The command line: one file a command; `app.py` only wires them together."""
