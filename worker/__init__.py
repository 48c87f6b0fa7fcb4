"""Holds a stage of the model and runs its actions. Refuses to decide what to run."""
