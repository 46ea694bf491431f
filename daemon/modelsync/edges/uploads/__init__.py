"""Uploads under way: what has arrived of them is kept below STATE/uploads until it is published or given up."""
