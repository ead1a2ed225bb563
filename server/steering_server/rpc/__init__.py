"""The gRPC services: convert, ask the engine, convert back. `guard` turns what they raise into statuses."""
