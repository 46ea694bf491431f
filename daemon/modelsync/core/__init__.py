"""Pure decisions: no clock, no dice, no files, no sockets. Everything here is a value or a function of values."""
