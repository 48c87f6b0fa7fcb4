"""The commands of `sim`, a module each."""
