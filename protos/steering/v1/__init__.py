"""Package `steering.v1`: messages and services, generated from the protos beside this file."""
