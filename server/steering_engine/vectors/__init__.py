"""Vector files (schema `steering.vector/1`) and the registry of loaded vectors."""
