"""Who is asked for which chunks of an object, and when."""
