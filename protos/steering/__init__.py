"""Generated protobuf code of the `steering` API; made by `make proto`, never committed."""
