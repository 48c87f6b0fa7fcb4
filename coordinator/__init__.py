"""Takes a job, gathers workers, plans, drives the step. Refuses to touch a tensor."""
