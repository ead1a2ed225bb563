"""The torch side: model loading, generation with steering, vector files. Knows nothing of gRPC."""
