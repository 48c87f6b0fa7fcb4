"""The composition root: starts the other programs by their commands. Refuses to reach into them."""
