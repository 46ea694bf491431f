"""How a version comes onto the hosts of a fleet: the plan, the orders about it, the next step."""
