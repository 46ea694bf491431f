"""The state directory and the links that applications open: everything that must survive a power cut."""
