"""Wire messages, and the only place where dataclass <-> message is known (`convert`)."""

import os

# gRPC's own lines say nothing that our errors do not, and come before them. It reads this as it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
