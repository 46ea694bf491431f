"""One library or one operating-system facility a file; each translates its exceptions in one place."""
