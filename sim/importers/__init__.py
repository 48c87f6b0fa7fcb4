"""Public data sets and logs turned into `link-trace/1`, a module for each source. `KINDS` names them."""
