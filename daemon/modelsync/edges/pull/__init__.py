"""Pulling objects from peers: connections, answers, several peers at once, what old bytes can fill."""
