"""The machine beneath: clocks, systemd, the configuration file's edits, figures."""
