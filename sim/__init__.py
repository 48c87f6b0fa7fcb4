"""Plans against recorded networks, without (replay) or with (emulate) real processes. Needs no torch."""
