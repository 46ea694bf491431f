"""Where versions are held: the three modes, the placement of models on nodes, caches, and the object store's claims."""
