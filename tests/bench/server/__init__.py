"""What the way through gRPC costs beside the engine itself."""
