"""The dashboard: a page, JSON and metrics about one run, fed by the coordinator's own events."""
