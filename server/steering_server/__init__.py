"""The gRPC side of the server: configuration, services, errors as statuses, start and stop.

`cli` is the command `steering-server`, `process` its life from loading to the last signal, `serving` a server
around one loaded model, and `rpc` holds the services. All of the model's work is done by `steering_engine`.
"""
