"""The models directory as people leave it: what lies there, when it moves, and how a model is put into it."""
