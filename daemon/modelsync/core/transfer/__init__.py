"""What is asked for in one request, what an old version already gives, and what of an object is verified."""
