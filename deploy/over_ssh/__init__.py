"""Workers on machines that are reached by ssh."""
